"""Images/s of two trainings at a time on the same CPU cores, beside two of the bare loop in benchmarks/peers.py.

    python benchmarks/together.py [--runs 1]

Threads that wait for each other spin, and two programs whose threads spin keep each other from
what they wait for; the smaller the images, the more there is to wait for. Writes
benchmarks/results/together.md and .json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import images
from commands import TIMEOUT_S
from record import Floor, in_turn, ratio, write

MODEL, BATCH_SIZE, EPOCHS, IMAGES, SIDE = "resnet20", 128, 16, 1024, 8
OURS, BARE = "resnet-ops", "bare loop"
FLOOR = 5.0
ABOUT = f"""
{MODEL} on {IMAGES:,} images of {SIDE}x{SIDE}, batches of {BATCH_SIZE}, {EPOCHS} epochs, begun at the same time.
images/s: of the epochs but the first and the last, of both together; the mean over time, for the speed comes and goes.
"""
Start = Callable[[Path, Path], tuple[list[object], Path]]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        images.made_up(folder, SIDE, IMAGES, BATCH_SIZE)
        found = in_turn(
            {
                said(who, count): partial(at_once, start, folder, count)
                for who, start in STARTS.items()
                for count in (1, 2)
            },
            options.runs,
        )
    rows = [
        {
            "": who,
            "alone, images/s": statistics.median(found[said(who, 1)]),
            "two at a time, images/s": statistics.median(found[said(who, 2)]),
            "of one alone": ratio(found[said(who, 2)], found[said(who, 1)]),
            "each": found[said(who, 2)],
        }
        for who in STARTS
    ]
    floors = [Floor(f"two of {OURS} over two of the {BARE}", FLOOR, ratio(found[said(OURS, 2)], found[said(BARE, 2)]))]
    write("together", "Two trainings at a time", ABOUT, rows, floors, options.runs)


def said(who: str, count: int) -> str:
    """What so many of them are called."""
    return f"{who}, {count} at a time"


def ours(folder: Path, place: Path) -> tuple[list[object], Path]:
    """`resnet-ops train`, and where it tells its speed."""
    command = [Path(sys.executable).with_name("resnet-ops"), "train", "--name", "run", "--runs-dir", place]
    return [*command, "--device", "cpu", "--data", folder, *same()], place / "run" / "metrics.jsonl"


def bare(folder: Path, place: Path) -> tuple[list[object], Path]:
    """The loop of peers.py that does the least."""
    metrics = place / "metrics.jsonl"
    return [sys.executable, Path(__file__).with_name("peers.py"), "bare", folder, metrics, *same()], metrics


STARTS: dict[str, Start] = {OURS: ours, BARE: bare}


def same() -> list[object]:
    """What both are asked for."""
    return ["--model", MODEL, "--batch-size", BATCH_SIZE, "--epochs", EPOCHS]


def at_once(start: Start, folder: Path, count: int) -> float:
    """Images/s of so many trainings together."""
    started = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            place = Path(name) / str(number)
            place.mkdir()
            command, metrics = start(folder, place)
            silent = subprocess.DEVNULL
            started.append((subprocess.Popen(list(map(str, command)), stdout=silent, stderr=silent), metrics))
        speeds = []
        for process, metrics in started:
            if code := process.wait(TIMEOUT_S):
                raise SystemExit(f"error: a training ended with {code}")
            rates = [json.loads(line)["images_per_second"] for line in metrics.read_text().splitlines()]
            speeds.append(statistics.harmonic_mean(rates[1:-1]))
    return sum(speeds)


if __name__ == "__main__":
    main()
