"""Whole commands, each a process of its own, timed and weighed from outside."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 600
SAMPLE_S = 1.0


@dataclass(frozen=True)
class Ran:
    """What a training command took."""

    seconds: float  # from the shell to its end
    images_per_second: float  # the median over its epochs but the first
    memory_mib: float  # most of it at once, all its processes together
    gpu_mib: float | None

    def __str__(self) -> str:
        gpu = "" if self.gpu_mib is None else f", {self.gpu_mib:.0f} MiB on the GPU"
        return f"{self.images_per_second:.1f} images/s, {self.seconds:.1f} s, {self.memory_mib:.0f} MiB{gpu}"


def resnet_ops_train(runs_dir: Path, *options: object) -> Ran:
    """`resnet-ops train`, the real command."""
    command = [Path(sys.executable).with_name("resnet-ops"), "train", "--name", "run", "--overwrite"]
    return run(runs_dir / "run/metrics.jsonl", *command, "--runs-dir", runs_dir, *options)


def run(metrics: Path, *command: object) -> Ran:
    """Run a command that trains and writes its speed to `metrics`, an epoch a line."""
    metrics.unlink(missing_ok=True)
    gpu_before = _gpu_mib()
    log = metrics.parent.parent / "log.txt"
    with log.open("w") as file, _ended_with_this_script():
        started = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=file, start_new_session=True, cwd=log.parent
        )
        scales = Scales(process.pid)
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"error: {_said(command)} did not end in {TIMEOUT_S} s") from None
        finally:
            seconds = time.perf_counter() - started
            scales.stop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        raise SystemExit(f"error: {_said(command)} ended with {code}: {last}")
    rates = [json.loads(line)["images_per_second"] for line in metrics.read_text().splitlines()]
    gpu = None if gpu_before is None else max(scales.gpu_mib - gpu_before, 0)
    return Ran(seconds, statistics.median(rates[1:]), scales.memory_mib, gpu)


@contextlib.contextmanager
def _ended_with_this_script() -> Iterator[None]:
    """Let SIGTERM end this script as Ctrl-C does, so that what it started is ended too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _said(command: tuple[object, ...]) -> str:
    return " ".join(map(str, command))


class Scales(threading.Thread):
    """Weighs a session of processes once a second.

    Memory that processes share, as a DataLoader's workers do, is counted once (PSS).
    """

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.memory_mib = self.gpu_mib = 0.0
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Until told to stop."""
        while not self.ended.wait(SAMPLE_S):
            self.memory_mib = max(self.memory_mib, _memory_mib(self.session))
            self.gpu_mib = max(self.gpu_mib, _gpu_mib() or 0)

    def stop(self) -> None:
        """Tell it to."""
        self.ended.set()
        self.join()


def _memory_mib(session: int) -> float:
    kib = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            # After the name, which may hold anything: state, parent, group, session.
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                rollup = (process / "smaps_rollup").read_text()
                kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return kib / 1024


def _gpu_mib() -> float | None:
    """What is used of the first GPU, by whomever: inside a container its processes cannot be told apart."""
    if shutil.which("nvidia-smi") is None:
        return None
    question = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(question, capture_output=True, text=True, check=False)
    return float(answer.stdout) if answer.returncode == 0 else None
