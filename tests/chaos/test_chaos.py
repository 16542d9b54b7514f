"""Kills at random, again and again: `make test-chaos`. The weights must be those of an undisturbed run.

RESNET_OPS_CHAOS_ROUNDS says how many kills (25), RESNET_OPS_CHAOS_SEED which ones.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes, Training, assert_same_bytes, job_processes
from tests.waiting import wait_for

ROUNDS = int(os.environ.get("RESNET_OPS_CHAOS_ROUNDS", "25"))
EPOCHS = int(os.environ.get("RESNET_OPS_CHAOS_EPOCHS", "60"))
OPTIONS = ("--model", "resnet8", "--batch-size", 120, "--checkpoint-every", 7, "--max-failures", 1000)
# The last ones are processes of a submitted job: Ray's supervisor of it, our own, and the driver.
EVERYWHERE = ("worker", "worker", "node", "controller")
SUBMITTED = ("job's actor", "job's supervisor", "job's driver", "job's driver")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes(4, job_server=True)
    yield started
    started.close()


class Disturbed:
    """A training that is disturbed at random until it has been often enough, and ends all the same."""

    def __init__(self, chance: random.Random, nodes: Nodes, training: Training, victims: tuple[str, ...]) -> None:
        self.chance, self.nodes, self.training, self.victims = chance, nodes, training, victims

    def run(self, kills: Counter[str]) -> None:
        """Kill until there were `ROUNDS` kills, and wait for the end."""
        training = self.training
        while kills.total() < ROUNDS:
            wait_for(lambda: training.process.poll() is not None or bool(self.nodes.workers()), 180)
            time.sleep(self.chance.uniform(0, 8))  # falls into starting up, training, saving and recovering alike
            if training.process.poll() == 0:
                break
            kills.update(self.kill())
        while training.ended(600) != 0:
            log = training.log.read_text()
            gave_up = "was killed, as were 3 before it. Resume with:" in log[-1000:]  # each before its first checkpoint
            assert training.process.returncode in (-9, 75) or gave_up, log[-3000:]
            self.go_on()
        wait_for(lambda: not self.nodes.workers() and not self.nodes.processes(b"TrainController"), 60)
        assert not job_processes(training.run)

    def go_on(self) -> None:
        """Resume the run; start it as the first time if it had not begun."""
        if self.training.run.record_file.exists():
            self.training.resume(*self.place())
        else:
            self.training.again()

    def place(self) -> tuple[object, ...]:
        """Return the options that say where it is resumed."""
        return ("--cluster", self.nodes.job_server) if self.victims != (*EVERYWHERE, "driver") else ()

    def kill(self) -> list[str]:
        """Kill something, see to it that training can go on, and return what it was; [] where it was not there."""
        victim = self.chance.choice(self.victims)
        if self.training.process.poll() is not None:
            self.go_on()
            return []
        found = sorted(self.find(victim))
        if not found:
            return []
        process = self.chance.choice(found)
        if victim == "node":
            self.nodes.kill(self.nodes.workers()[process])
            self.nodes.add()
            return [victim]
        if victim == "driver":
            self.training.kill()
            self.go_on()
            return [victim]
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        return [victim]

    def find(self, victim: str) -> list[int]:
        """Return the processes of that kind."""
        kinds: dict[str, Callable[[], list[int]]] = {
            "worker": lambda: list(self.nodes.workers()),
            "node": lambda: list(self.nodes.workers()),
            "controller": lambda: list(self.nodes.processes(b"TrainController")),
            "driver": lambda: [self.training.process.pid],
            "job's actor": lambda: list(self.nodes.processes(b"JobSupervisor")),
            "job's supervisor": lambda: job_processes(self.training.run)[:1],
            "job's driver": lambda: job_processes(self.training.run)[1:],
        }
        return kinds[victim]()


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["fixed", "elastic", "job"])
def test_random_kills_lose_nothing(nodes: Nodes, tmp_path: Path, how: str) -> None:
    """Where the number of workers is always the same, they change no byte."""
    seed = int(os.environ.get("RESNET_OPS_CHAOS_SEED", time.time_ns() % 10**6))
    print(f"RESNET_OPS_CHAOS_SEED={seed}")  # noqa: T201  # to try the same kills again
    chance = random.Random(seed)
    place = ("--cluster", nodes.job_server if how == "job" else nodes.address)
    options = (*place, *OPTIONS, "--nodes", "2:4" if how == "elastic" else 3, "--epochs", EPOCHS)
    victims = (*EVERYWHERE, *SUBMITTED) if how == "job" else (*EVERYWHERE, "driver")
    expected = None
    if how != "elastic":
        whole = Training(tmp_path, "whole", *options)
        assert whole.ended(300) == 0, whole.log.read_text()[-3000:]
        expected = whole.weights()

    kills: Counter[str] = Counter()
    number = 0
    while kills.total() < ROUNDS:
        number += 1
        training = Training(tmp_path, f"disturbed-{number}", *options)
        Disturbed(chance, nodes, training, victims).run(kills)
        assert training.run.read().status == "finished"
        assert [epoch.epoch for epoch in training.run.epochs()] == [*range(1, EPOCHS + 1)]
        if expected is not None:
            assert_same_bytes(expected, training.weights())
    print(f"{how}: {kills.total()} kills {dict(kills)} in {number} runs of {EPOCHS} epochs: nothing lost")  # noqa: T201
