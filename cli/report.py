"""`resnet-ops report`: one page to look at runs and to compare them."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops import files, formatting
from resnet_ops import runs as library
from resnet_ops.config import TrainConfig
from resnet_ops.runs import Run

from .clock import importing, process_started_at
from .console import Output, err, short, table
from .options import Debug, Json, RunsDir

EXAMPLES = """
[bold]resnet-ops report mine[/]  report.html on run 'mine'

[bold]resnet-ops report plain56-digits resnet56-digits -o depth.html[/]  two runs compared
"""


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, or paths of their folders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="File to write; replaced if it is there.")
    ] = Path("report.html"),
    runs_dir: Annotated[Path, RunsDir] = TrainConfig.default("runs_dir"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained page on runs: how they learned, and what each takes for what.

    The best weights of each run judge its validation images once more, which must be where they were. The page opens
    without a network, in light and in dark.
    """
    shown = Output(json)
    wanted = list(dict.fromkeys(_find(runs_dir, name).path for name in runs))
    with err.status("Reporting", spinner="dots") if err.is_terminal else err:
        with importing():
            from resnet_ops.reporting import report as library_report

        found = library_report.write([Run(path) for path in wanted], output, _notice)
    rows = [one.summary() for one in found]
    made = table("run", "network", "status", ">epochs", ">accuracy", ">errors")
    for row in rows:
        accuracy = formatting.percent(row["val_accuracy"]) if row["val_accuracy"] is not None else ""
        wrong = "" if row["mistakes"] is None else str(row["mistakes"])
        made.add_row(row["name"], row["model"], row["status"], str(row["epochs"]), accuracy, wrong)
    size = len(files.read(output))
    shown.show(made, f"[bold green]Written:[/] {escape(short(output.absolute()))} ({formatting.size(size)})")
    total_s = time.time() - process_started_at()
    shown.end({"report": output.absolute(), "size_bytes": size, "runs": rows, "total_s": total_s})


def _find(runs_dir: Path, name: str) -> Run:
    path = files.to_path(name).expanduser()
    files.check_reachable(path)
    return Run(path) if files.is_file(path / "run.json") else library.find(runs_dir, name)


def _notice(message: str) -> None:
    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)
