"""Seconds from a signal, or from the loss of Ray's head, to the end of a command whose work can be resumed.

    python benchmarks/stopping.py [--runs 1]

ResNet-8 on the embedded digits, training for minutes; each signal once it trains. What ends with another exit code than
75 (preempted) or 130 (Ctrl-C), without its resume command, or without a checkpoint of the last step that was seen, is
an error and not in the table. It takes 15 minutes on 2 cores. Needs Linux.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests' way of starting and killing nodes is used here too

from record import Row, write_once  # noqa: E402

from resnet_ops.errors import INTERRUPTED, PREEMPTED  # noqa: E402
from resnet_ops.runs import Run  # noqa: E402
from resnet_ops.training import checkpoint as checkpoints  # noqa: E402
from tests.cluster.nodes import Nodes, job_processes  # noqa: E402
from tests.conftest import COMMAND  # noqa: E402
from tests.processes import command_line, descendants  # noqa: E402

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
LONG = ("--model", "resnet8", "--epochs", 5000, "--cpus-per-worker", 1)
ABOUT = """
Seconds from a signal, or from a SIGKILL of Ray's head, to the end of the command; ResNet-8 on the embedded digits. All
end with exit code 75 (Ctrl-C: 130), the command that resumes, and a checkpoint of the last step seen or a later
one: at most the step in hand is lost. Limit: 30.
"""


class Work:
    """A command that trains, in a process of its own."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder, self.log = folder, folder / "log"
        command = [*COMMAND, *map(str, arguments), "--runs-dir", str(folder), "--name", "work"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def trained(self) -> dict[Path, tuple[int, int]]:
        """Return the runs that train, with the epoch and the step that each was seen at."""
        found = {}
        for file in self.folder.rglob("progress.json"):
            progress, _ = Run(file.parent).read_progress()
            if progress and progress.get("step"):
                found[file.parent] = (progress["epoch"], progress["step"])
        return found

    def wait_until_it_trains(self) -> dict[Path, tuple[int, int]]:
        """Wait until a run has trained some epochs, so that all of its processes are at work."""
        deadline = time.monotonic() + 180
        while True:
            seen = self.trained()
            if any(epoch >= 3 for epoch, _ in seen.values()):
                return seen
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"error: it does not train:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def seconds_to_end(self, code: int, seen: dict[Path, tuple[int, int]]) -> float:
        """Wait for the end, check it, and return the seconds that it took."""
        began = time.monotonic()
        ended = self.process.wait(120)
        seconds = time.monotonic() - began
        output = self.log.read_text()
        if ended != code or "--resume" not in output[-2000:]:
            raise SystemExit(f"error: exit code {ended}, expected {code}:\n{output[-2000:]}")
        for path, position in seen.items():
            info = checkpoints.read(checkpoints.saved_checkpoints(Run(path))[0]).info
            if (info.epoch + 1, info.step or 0) < position:
                raise SystemExit(
                    f"error: {path.name} was at {position}; the checkpoint is of {info.epoch}, {info.step}"
                )
        return seconds


@dataclass(frozen=True)
class Place:
    """Where a command trains: its arguments, and the process that gets the signal."""

    name: str
    arguments: tuple[object, ...]
    target: Callable[[Work], int] = lambda work: work.process.pid
    signals: tuple[signal.Signals, ...] = SIGNALS


def head_of(work: Work) -> int:
    """Return the process of the head of the Ray that a command has started."""
    for process in descendants(work.process.pid):
        if b"gcs_server" in command_line(process).split(b"\0")[0]:
            return process
    raise SystemExit("error: the command has started no Ray")


@contextmanager
def started(place: Place) -> Iterator[Work]:
    """Start a command; kill it at the end."""
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), *place.arguments)
        try:
            yield work
        finally:
            work.process.kill()
            work.process.wait()


def seconds_after(place: Place, sent: signal.Signals, code: int) -> float:
    """Start a command, send a signal once it trains, and return the seconds to its end."""
    with started(place) as work:
        seen = work.wait_until_it_trains()
        os.kill(place.target(work), sent)
        return work.seconds_to_end(code, seen)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    runs, rows = parser.parse_args().runs, list[Row]()
    nodes = Nodes(2, job_server=True)
    try:
        on_nodes = ("train", *LONG, "--nodes", 2, "--cluster")
        places = [
            Place("train, one process", ("train", *LONG)),
            Place("train, 2 workers", ("train", *LONG, "--workers-per-node", 2)),
            Place("train, 2 nodes: to the driver", (*on_nodes, nodes.address)),
            Place(
                "train, 2 nodes: to a worker", (*on_nodes, nodes.address), lambda _: min(nodes.workers()), SIGNALS[:3]
            ),  # Ctrl-C is for the driver
            Place(
                "train, submitted job: to its driver",
                (*on_nodes, nodes.job_server),
                lambda work: job_processes(Run(work.folder / "work"))[-1],
            ),
            Place(
                "tune, 2 trials at a time", ("tune", "model=resnet8", *LONG[2:4], "--trials", 2, "--cpus-per-trial", 1)
            ),
            Place("study", ("study", "degradation", "--depths", "8,14", "--seeds", 1, *LONG[2:4])),
        ]
        for place in places:
            row: Row = {"work": place.name}
            for sent in place.signals:
                code = INTERRUPTED if sent == signal.SIGINT else PREEMPTED
                found = [seconds_after(place, sent, code) for _ in range(runs)]
                row[sent.name] = statistics.median(found)
                print(f"{place.name}, {sent.name}: {found}", flush=True)
            rows.append(row)
        for place in (places[1], *places[5:]):
            of_head = Place(place.name, place.arguments, head_of)
            found = [seconds_after(of_head, signal.SIGKILL, PREEMPTED) for _ in range(runs)]
            next(row for row in rows if row["work"] == place.name)["head lost"] = statistics.median(found)
            print(f"{place.name}, head lost: {found}", flush=True)
    finally:
        nodes.close()
    write_once("stopping", "From a signal to a resumable end", ABOUT.strip(), rows)


if __name__ == "__main__":
    main()
