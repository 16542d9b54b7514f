"""`resnet-ops report`: writes a page about one or more runs, and shows their accuracies as a table."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops import files, formatting
from resnet_ops import runs as library
from resnet_ops.config import RunsConfig
from resnet_ops.runs import Run

from .config_options import Debug, Json, Options, options_of
from .console import Output, accuracy_cells, accuracy_legend, err, short, table, warn
from .runs import Names
from .startup import importing, process_started_at

EXAMPLES = """
resnet-ops report mine  # write report.html about run 'mine'
resnet-ops report plain56-digits resnet56-digits -o depth.html  # compare two runs
"""


@options_of(RunsConfig)
def report(
    runs: Names,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="File to write; replaced if it exists.")
    ] = Path("report.html"),
    *,
    options: Options,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a self-contained HTML report about one or more runs: learning curves, confusion matrix, worst errors.

    It evaluates the best weights of each run on its validation images, which must still be in place. The page needs no
    network connection, and has a light and a dark theme.
    """
    out = Output(json)
    runs_dir = options.make(RunsConfig).runs_dir
    paths = list(dict.fromkeys(_find(runs_dir, name).path for name in runs))
    with err.status("Reporting", spinner="dots") if err.is_live else err:
        with importing():
            from resnet_ops.reporting import run_report as library_report

        result = library_report.write([Run(path) for path in paths], output, warn, process_started_at())
    rows = table("run", "network", "status", ">epochs", ">chosen", ">last", ">test", ">errors")
    names = library.distinct_names([row.run_dir for row in result.runs])
    for row in result.runs:
        accuracies = accuracy_cells(
            row.val_accuracy, row.last_val_accuracy, row.test_accuracy, row.selected_by, row.metric
        )
        wrong = "" if row.mistakes is None else str(row.mistakes)
        rows.add_row(escape(names[row.run_dir]), row.model, row.status, str(row.epochs), *accuracies, wrong)
    size = formatting.size(result.size_bytes)
    out.show(rows, *accuracy_legend(any(row.fit_all for row in result.runs)))
    for row in result.runs:
        out.warn_of(row.majority_baseline, names[row.run_dir])
    out.show(f"[bold green]Written:[/] {escape(short(result.report))} ({size})")
    out.end(result)


def _find(runs_dir: Path, name: str) -> Run:
    files.check_reachable(files.to_path(name).expanduser())
    return library.find_or_open(runs_dir, name)
