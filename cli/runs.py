"""`resnet-ops runs`: lists the runs in a folder; shows, compares and deletes some."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from resnet_ops import runs as library
from resnet_ops.config import RunListConfig, RunsConfig
from resnet_ops.config_base import as_options
from resnet_ops.errors import WORK_FAILED, UserError, did_you_mean
from resnet_ops.formatting import duration, percent
from resnet_ops.run_records import DeletedRuns, RunSummary

from . import completion
from .config_options import Debug, Json, Options, options_of
from .console import Output, accuracy_cells, accuracy_legend, ago, short, show_rows, table, warn
from .help import Command, Group

if TYPE_CHECKING:
    from resnet_ops.reporting.run_comparison import RunComparison, RunDescription
    from resnet_ops.run_records import Epoch

EXAMPLES = """
resnet-ops runs  # all runs, the last updated first
resnet-ops runs --sort accuracy --match flowers  # those of flowers, the most accurate first
resnet-ops runs show mine --plot  # what a run is, and its learning curves
resnet-ops runs compare mine other  # options that differ, and whether one is better beyond chance
"""
COLORS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "preempted": "yellow", "failed": "red"}
COLUMNS = ("name", "model", "data", "status", "epochs", "chosen", "last", "test", "when")
OPTIONAL = ("when", "last", "epochs", "data", "test")  # left out in this order in a narrow terminal
RIGHT = ("epochs", "chosen", "last", "test")
NOT_OF_BEST = ", from weights other than the best ones now"
PLOT_WIDTH, PLOT_HEIGHT = 64, 12  # characters
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN", help="Names of runs, or paths of their folders.", autocompletion=completion.BY_NAME["runs"]
    ),
]

app = typer.Typer(cls=Group, add_completion=False, epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
@options_of(RunListConfig)
def list_runs(
    options: Options,
    columns: Annotated[
        str, typer.Option(metavar="LIST", help=f"Columns to show, of {', '.join(COLUMNS)}.", show_default=False)
    ] = ",".join(COLUMNS),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List runs with network, dataset, status, accuracies and age, newest first; show, compare or delete some."""
    if options.context.invoked_subcommand is not None:
        return
    names = _read_columns(columns)
    config = options.make(RunListConfig)
    output = Output(json)
    result = library.list_runs(config, warn)
    if not result.runs:
        such = "" if config.match is None and config.status is None else "such "
        output.show(
            f"No {such}runs in {config.runs_dir.absolute()}. Name the folder of yours with --runs-dir, or train one: "
            "resnet-ops train"
        )
    else:
        optional = () if "columns" in options.given else OPTIONAL
        headers = [f">{name}" if name in RIGHT else name for name in names]
        cells = [[_cells(run)[name] for name in names] for run in result.runs]
        output.show_table(headers, cells, optional, ("name", "model", "data", "status"))
        output.show(*accuracy_legend(any(run.fit_all for run in result.runs)))
    output.end(result)


def _read_columns(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise UserError(
                f"--columns: there is no column {name!r}.",
                f"{did_you_mean(name, COLUMNS)} Columns: {', '.join(COLUMNS)}.",
            )
    return names


def _cells(run: RunSummary) -> dict[str, str]:
    accuracies = accuracy_cells(
        run.best_val_accuracy, run.last_val_accuracy, run.test_accuracy, run.selected_by, run.best_metric
    )
    status, epochs = f"[{COLORS[run.status]}]{run.status}[/]", f"{run.epochs_done}/{run.epochs}"
    plain = (run.name, run.model, run.data)
    return dict(zip(COLUMNS, (*map(escape, plain), status, epochs, *accuracies, ago(run.updated)), strict=True))


@app.command(cls=Command, epilog=EXAMPLES)
@options_of(RunsConfig)
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Name of a run, or path of its folder.", autocompletion=completion.BY_NAME["runs"]
        ),
    ],
    plot: Annotated[bool, typer.Option("--plot", help="Draw its learning curves.")] = False,
    *,
    options: Options,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run is: options, status, accuracies, files, and on request its learning curves."""
    output = Output(json)
    from resnet_ops.reporting.run_comparison import describe_run

    result = describe_run(library.find_or_open(options.make(RunsConfig).runs_dir, run))
    show_rows(output.out, _facts(result))
    if plot and result.curve:
        output.show("", _plot(result.curve))
    output.end(result)


def _facts(run: "RunDescription") -> list[tuple[str, str]]:
    accuracy = "" if run.best_val_accuracy is None else f"{percent(run.best_val_accuracy)} in epoch {run.best_epoch}"
    facts = [
        ("run", run.name),
        ("status", f"{run.status}{': ' if run.reason else ''}{run.reason}"),
        ("data", f"{run.data}"),
        ("network", f"{run.model}, {run.parameters:,} parameters{f', shortcuts {run.shortcut}' * bool(run.shortcut)}"),
        ("options", " ".join(as_options(run.options)) or "the defaults"),
        ("augmentation", run.augmentation),
        ("device", f"{run.device}, {run.world_size} worker{'s' if run.world_size > 1 else ''}, begun on {run.host}"),
        ("epochs", f"{run.epochs_done} of {run.epochs}{f', in {duration(run.training_s)}' * bool(run.curve)}"),
        ("chosen", f"{accuracy}, on the validation images that chose it" if accuracy else ""),
        ("", run.copies_warning),
        ("last epoch", "" if run.last_val_accuracy is None else percent(run.last_val_accuracy)),
        (
            "test",
            "" if run.test_accuracy is None else f"{percent(run.test_accuracy)} on {run.measured_images:,} images",
        ),
        ("created", f"{run.created:%Y-%m-%d %H:%M} UTC; updated {ago(run.updated)}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
        ("best weights", short(run.best_weights) if run.best_weights else ""),
        *(("exported", f"{short(file)}{NOT_OF_BEST * (file in run.not_of_best)}") for file in run.onnx),
    ]
    return [(label, text) for label, text in facts if text]


def _plot(curve: Sequence["Epoch"]) -> str:
    from uniplot import plot_to_string

    lines = {"training": [(epoch.epoch, 100 * epoch.train_error) for epoch in curve]}
    if validated := [(epoch.epoch, 100 * epoch.val_error) for epoch in curve if epoch.val_error is not None]:
        lines["validation"] = validated
    return str(
        plot_to_string(
            xs=[[x for x, _ in points] for points in lines.values()],
            ys=[[y for _, y in points] for points in lines.values()],
            legend_labels=list(lines),
            lines=True,
            title="top-1 error in % by epoch",
            width=PLOT_WIDTH,
            height=PLOT_HEIGHT,
            color=False,
        )
    )


@app.command(cls=Command, epilog=EXAMPLES)
@options_of(RunsConfig)
def compare(runs: Names, *, options: Options, json: Json = False, debug: Debug = False) -> None:
    """Compare runs: the options in which they differ, and whether one is more accurate than chance explains."""
    output = Output(json)
    from resnet_ops.reporting.run_comparison import compare_runs

    folder = options.make(RunsConfig).runs_dir
    result = compare_runs([library.find_or_open(folder, name) for name in runs])
    output.show(_comparison(result), *_verdicts(result))
    output.end(result)


def _comparison(result: "RunComparison") -> object:
    names = library.distinct_names([run.run_dir for run in result.runs])
    rows = table("", *(escape(names[run.run_dir]) for run in result.runs))
    of_each: dict[str, Callable[[RunSummary], str]] = {
        "data": lambda run: run.data,
        "network": lambda run: run.model,
        "status": lambda run: run.status,
        "epochs": lambda run: f"{run.epochs_done}/{run.epochs}",
        "chosen": lambda run: _cells(run)["chosen"],
        "last": lambda run: _cells(run)["last"],
        "test": lambda run: _cells(run)["test"],
    }
    for title, cell in of_each.items():
        if any(cells := [cell(run) for run in result.runs]):
            rows.add_row(title, *cells)
    for name, values in result.options.items():
        if name not in ("model", "epochs", "data"):
            rows.add_row(f"--{name.replace('_', '-')}", *(escape(_value(value)) for value in values))
    return rows


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)


def _verdicts(result: "RunComparison") -> list[str]:
    if not result.differences:
        return ["[dim]Their accuracies are not compared: they were not validated on the same images.[/]"]
    best = result.differences[0].better  # of the largest difference
    return [
        f"{escape(best)} is {100 * each.difference:.2f} percentage points above {escape(each.worse)}, "
        f"{'more' if each.beyond_chance else 'no more'} than chance explains (p = {each.p_value:.2g}, {result.tests})."
        for each in reversed(result.differences)
        if each.better == best
    ]


@app.command(cls=Command, epilog=EXAMPLES)
@options_of(RunsConfig)
def rm(
    runs: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    *,
    options: Options,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete runs with all their files, after a question."""
    output = Output(json)
    folder: Path = options.make(RunsConfig).runs_dir
    chosen = [library.find_or_open(folder, name) for name in runs]
    if not yes:
        _ask(", ".join(short(run.path) for run in chosen))
    for run in chosen:
        library.delete(run)
        output.show(f"Deleted {escape(short(run.path))}")
    output.end(DeletedRuns(deleted=tuple(run.path for run in chosen)))


def _ask(names: str) -> None:
    """Ask whether to delete runs.

    Raises:
        UserError: They are not to be deleted, or nobody answers.
    """
    try:
        agreed = typer.confirm(f"Delete {names} with all checkpoints?", err=True)
    except typer.Abort:
        raise UserError("There is nobody to ask whether to delete runs.", "Use --yes.") from None
    if not agreed:
        raise UserError("Nothing was deleted.", exit_code=WORK_FAILED)
