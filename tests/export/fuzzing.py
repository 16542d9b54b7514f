"""The program that opens damaged files: `python -m tests.export.fuzzing GOOD KIND COUNT`, JSON on stdout.

Each is opened in a process of its own. Forked from this one, which has imported everything, it takes 10 ms.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from resnet_ops.errors import UserError
from resnet_ops.export import imported_weights, runtime, sandbox, untrusted
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import ExportConfig
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.weights.locate import LocatedWeights

PATIENCE_S = 30


def mutants(content: bytes, count: int) -> list[bytes]:
    """Return copies that are truncated, or have bytes changed, deleted, doubled or blanked, many near the start."""
    rng = np.random.default_rng(0)
    damaged = []
    for number in range(count):
        data = bytearray(content)
        reach = len(data) if number % 3 else min(len(data), 4000)
        at, length = int(rng.integers(reach)), int(rng.integers(1, 64))
        way = number % 7
        if way == 0:
            data = data[:at]
        elif way == 1:
            for place in rng.integers(reach, size=1 + number % 5):
                data[place] = int(rng.integers(256))
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            data[at:at] = data[at : at + length]
        elif way == 4:
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif way == 5:
            data[at] ^= 1 << int(rng.integers(8))
        else:
            data[at : at + 8] = b"\xff" * min(8, len(data) - at)
        damaged.append(bytes(data))
    return damaged


def ending(work: Callable[[], object]) -> str:
    """Return how a process that does this ends: 'done', 'refused', 'signal 11', 'hang', or an exception."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        signal.alarm(PATIENCE_S)
        try:
            work()
            outcome = "done"
        except UserError as error:
            outcome = "refused" if "\n" not in str(error) else f"several lines: {error!r}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(into, outcome[:2000].encode())
        os._exit(0)
    os.close(into)
    outcome = b""
    while part := os.read(out, 4096):
        outcome += part
    os.close(out)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hang" if number == signal.SIGALRM else f"signal {number}"
    return outcome.decode()


def use_onnx(path: Path) -> str:
    """Use a file as `predict` does: scanned, run in the sandbox, and only then loaded here."""
    scanned = ending(lambda: untrusted.scan(path))
    if scanned != "done":
        return scanned
    if ending(lambda: sandbox.main(str(path))) != "done":  # whatever happens there is one line to the user
        return "refused"

    def use() -> None:
        _, metadata = untrusted.scan(path)
        classifier = Classifier.from_session(metadata, runtime.create_session(path, runtime.CPU, threads=1))
        classifier.classify(np.zeros((2, *classifier.crop.shape), np.uint8))

    return ending(use)


def main(good: Path, kind: str, count: int) -> None:
    """Print how many ended how, and what ended as it must not."""
    torch.set_num_threads(1)
    path = good.with_name(f"mutant{good.suffix}")
    config = ExportConfig(run=str(path), model="resnet8", image_size=8, mean="0.5", std="0.5")
    ways: dict[str, Callable[[], str]] = {
        "onnx": lambda: use_onnx(path),
        "checkpoint": lambda: ending(lambda: checkpoints.read(path)),
        "weights": lambda: ending(lambda: imported_weights.read(LocatedWeights(path, "w.pth"), config)),
    }
    endings: Counter[str] = Counter()
    for content in mutants(good.read_bytes(), count):
        path.write_bytes(content)
        endings[ways[kind]()] += 1
    print(json.dumps(endings))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
