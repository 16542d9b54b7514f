"""What benchmarks share: measures taken in turn, their medians and ratios, and the tables of them."""

import contextlib
import json
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from resnet_ops.machine import cores, versions

RESULTS = Path(__file__).with_name("results")
Measured = TypeVar("Measured")
Row = dict[str, Any]


@dataclass(frozen=True)
class Floor:
    """A figure below which a measured one should not fall."""

    what: str
    least: float
    found: float

    def __str__(self) -> str:
        return f"{self.what}: {self.found:.2f}, floor {self.least:.2f}, {'holds' if self.holds else 'BELOW'}"

    @property
    def holds(self) -> bool:
        """Whether it does not."""
        return self.found >= self.least


def require(**packages: str) -> None:
    """Refuse to measure without a peer, rather than leave it out of the table; names map modules to distributions."""
    missing = [distribution for module, distribution in packages.items() if find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"error: not installed: {', '.join(missing)}. Install the peers: pip install -e '.[dev,bench]'"
        )


def in_turn(measures: Mapping[str, Callable[[], Measured]], runs: int) -> dict[str, list[Measured]]:
    """Measure one after the other, round after round, so that the machine's moods fall on all alike.

    Every other round goes backwards, so that none is always measured after the same one.
    """
    found: dict[str, list[Measured]] = {name: [] for name in measures}
    for turn in range(runs):
        for name in list(measures)[:: -1 if turn % 2 else 1]:
            found[name].append(measures[name]())
            print(f"{turn + 1}/{runs} {name}: {found[name][-1]}", flush=True)
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of one measure divided by the other of the same round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def write(name: str, title: str, about: str, rows: list[Row], floors: list[Floor], runs: int, *peers: str) -> None:
    """Write a table twice: JSON for programs, Markdown for people.

    Args:
        name: Of the script and of both files.
        title: Of the Markdown page.
        about: What was measured, how, and what the columns mean.
        rows: All with the same keys, the columns' heads. Lists (single samples) go to the JSON only,
            and so does what is None in every row.
        floors: Figures that should hold.
        runs: Rounds measured.
        peers: Distributions whose versions matter, besides those that shape a run.
    """
    known = versions()
    for peer in peers:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[peer] = metadata.version(peer)
    record = {
        "machine": machine(),
        "versions": known,
        "runs": runs,
        "rows": rows,
        "floors": [vars(floor) | {"holds": floor.holds} for floor in floors],
    }
    told = ("torch", "ray", *peers)
    lines = [
        f"# {title}",
        "",
        about.strip(),
        "",
        f"{machine()}; {', '.join(f'{package} {known[package]}' for package in told if package in known)}.",
        f"Medians of {runs}, measured in turn; ratios are medians of each round's. Made by "
        f"`python benchmarks/{name}.py`.",
        "",
        *table(rows),
        *(["", *(f"- {floor}" for floor in floors)] if floors else []),
    ]
    _publish(name, record, lines)


def write_once(name: str, title: str, about: str, rows: list[Row]) -> None:
    """Write a table of what was measured once, and not in turns with others: the same two files as `write`."""
    lines = [f"# {title}", "", about, "", f"{machine()}. Made by `python benchmarks/{name}.py`.", "", *table(rows)]
    _publish(name, {"machine": machine(), "versions": versions(), "rows": rows}, lines)


def _publish(name: str, record: dict[str, Any], lines: list[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def table(rows: list[Row]) -> list[str]:
    """The lines of a table in Markdown: without lists, and without columns that are empty in every row."""
    told_of = {head for row in rows for head, value in row.items() if not (value is None or isinstance(value, list))}
    heads = [head for head in dict.fromkeys(head for row in rows for head in row) if head in told_of]
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(_cell(row.get(head)) for head in heads) + " |" for row in rows),
    ]


def machine() -> str:
    """This machine, in a few words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cores()} CPU cores ({_processor()}), {gpu}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 20 else f"{value:,.0f}"
    return str(value)
