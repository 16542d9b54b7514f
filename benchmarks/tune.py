"""What a trial of a search costs beyond its own training: `resnet-ops tune` beside Ray's documented pattern.

    python benchmarks/tune.py [--runs 5]

The same trials on the same machine, two at a time on a core each: whole commands of 2 and of 6 trials,
in turn. What 4 more trials take, less their own training, is what they cost. Writes
benchmarks/results/tune.md and .json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from record import Floor, Row, in_turn, ratio, write

OURS = "resnet-ops tune"
FEW, MANY, AT_ONCE, EPOCHS = 2, 6, 2, 4
MOST_S = 2.0
ABOUT = f"""
ResNet-8 on the embedded digits, {EPOCHS} epochs, learning rates from 0.02 to 0.2, {AT_ONCE} trials at once, a core each
and none stopped early. Cost of a trial: {AT_ONCE} (t{MANY} - t{FEW}) / {MANY - FEW} - own, where t is the seconds of a
whole command with so many trials and own the seconds a trial spends in its epochs. Both train by the same loop.

- Ray's pattern: a Tune trial that makes a TorchTrainer with TuneReportCallback, as Ray's user guide has it.
"""


@dataclass(frozen=True)
class Cost:
    """What searching cost, in seconds."""

    few: float
    many: float
    own: float

    @property
    def of_a_trial(self) -> float:
        """Beyond its own training."""
        return AT_ONCE * (self.many - self.few) / (MANY - FEW) - self.own

    def __str__(self) -> str:
        return f"{self.of_a_trial:.2f} s a trial beyond its own {self.own:.2f} s; {self.many:.1f} s for {MANY}"


def rates(trials: int) -> list[float]:
    """Learning rates, one a trial."""
    return [round(0.02 * 10 ** (number / (trials - 1)), 4) for number in range(trials)]


def ours() -> Cost:
    """`resnet-ops tune`, the real command."""

    def search(trials: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            command = [Path(sys.executable).with_name("resnet-ops"), "tune", "--depths", "8", "--search", "grid"]
            options = ["--lr", ",".join(map(str, rates(trials))), "--epochs", EPOCHS, "--scheduler", "none", "--json"]
            said, seconds = run(*command, *options, "--max-concurrent", AT_ONCE, "--runs-dir", folder)
            return seconds, statistics.mean(trial["seconds"] for trial in said["trials"])

    return cost(search)


def stock() -> Cost:
    """Ray's pattern."""
    script = Path(__file__).with_name("tune_peer.py")

    def search(trials: int) -> tuple[float, float]:
        said, seconds = run(sys.executable, script, EPOCHS, AT_ONCE, *rates(trials))
        return seconds, statistics.mean(said["seconds"])

    return cost(search)


def cost(search) -> Cost:  # type: ignore[no-untyped-def]
    """By the difference of two searches."""
    (few, _), (many, own) = search(FEW), search(MANY)
    return Cost(few, many, own)


def run(*command: object) -> tuple[dict, float]:  # type: ignore[type-arg]
    """Run a command whose last line is JSON."""
    started = time.perf_counter()
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900, check=False)
    if ended.returncode:
        raise SystemExit(f"error: {command[0]} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return json.loads(ended.stdout.splitlines()[-1]), time.perf_counter() - started


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    found = in_turn({OURS: ours, "Ray's pattern": stock}, options.runs)
    mine = found[OURS]
    rows: list[Row] = [
        {
            "": name,
            "cost of a trial, s": statistics.median(cost.of_a_trial for cost in samples),
            "its own training, s": statistics.median(cost.own for cost in samples),
            f"{MANY} trials, s": statistics.median(cost.many for cost in samples),
            "ratio": None if samples is mine else ratio([c.many for c in samples], [c.many for c in mine]),
            "each": [vars(cost) for cost in samples],
        }
        for name, samples in found.items()
    ]
    spare = MOST_S / statistics.median(cost.of_a_trial for cost in mine)
    floors = [Floor(f"{MOST_S:g} s over the cost of a trial", 1.0, spare)]
    write("tune", "A search's trials", ABOUT, rows, floors, options.runs)


if __name__ == "__main__":
    main()
