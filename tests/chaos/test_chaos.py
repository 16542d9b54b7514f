"""Kills at random, again and again: `make test-chaos`. The weights must be those of an undisturbed run.

RESNET_OPS_CHAOS_ROUNDS says how many kills (25), RESNET_OPS_CHAOS_SEED which ones.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes, Training, assert_same_bytes

ROUNDS = int(os.environ.get("RESNET_OPS_CHAOS_ROUNDS", "25"))
OPTIONS = ("--nodes", 3, "--model", "resnet8", "--batch-size", 120, "--checkpoint-every", 7, "--max-failures", 1000)
EPOCHS = 60


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes(4)
    yield started
    started.close()


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_random_kills_change_no_byte(nodes: Nodes, tmp_path: Path) -> None:
    seed = int(os.environ.get("RESNET_OPS_CHAOS_SEED", time.time_ns() % 10**6))
    print(f"RESNET_OPS_CHAOS_SEED={seed}")  # noqa: T201  # to try the same kills again
    chance = random.Random(seed)
    options = ("--cluster", nodes.address, *OPTIONS, "--epochs", EPOCHS)
    whole = Training(tmp_path, "whole", *options)
    assert whole.ended(300) == 0
    expected = whole.weights()

    kills: Counter[str] = Counter()
    number = 0
    while kills.total() < ROUNDS:
        number += 1
        training = Training(tmp_path, f"disturbed-{number}", *options)
        while training.process.poll() is None and kills.total() < ROUNDS:
            training.wait_until(lambda t=training: t.process.poll() is not None or bool(nodes.workers()), 120)
            time.sleep(chance.uniform(0, 8))  # falls into starting up, training, saving and recovering alike
            if training.process.poll() is not None:
                break
            kills[disturb(chance, nodes, training)] += 1
        assert training.ended(600) == 0, training.log.read_text()[-3000:]
        assert_same_bytes(expected, training.weights())
    print(f"{kills.total()} kills {dict(kills)} in {number} runs of {EPOCHS} epochs: all weights equal")  # noqa: T201


def disturb(chance: random.Random, nodes: Nodes, training: Training) -> str:
    """Kill something, and see to it that training can go on."""
    victim = chance.choice(["worker", "worker", "node", "driver"])
    workers = nodes.workers()
    if victim == "driver" or not workers:
        training.kill()
        if training.run.record_file.exists():
            training.resume()
        else:  # it had not begun
            training.again()
        return "driver"
    process = chance.choice(sorted(workers))
    if victim == "node":
        nodes.kill(workers[process])
        nodes.add()
    else:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return "worker that was gone"
    return victim
