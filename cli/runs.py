"""`resnet-ops runs`: lists the runs in a folder as a table."""

from resnet_ops import runs as library
from resnet_ops.config import RunsConfig

from .config_options import Debug, Json, Options, options_of
from .console import Output, accuracy_cells, accuracy_legend, ago, table, warn

COLORS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "preempted": "yellow", "failed": "red"}


@options_of(RunsConfig)
def runs(options: Options, json: Json = False, debug: Debug = False) -> None:
    """List runs with network, dataset, status, accuracies and age, newest first."""
    runs_dir = options.make(RunsConfig).runs_dir
    output = Output(json)
    rows = table("name", "model", "data", "status", ">epochs", ">chosen", ">last", ">test", "when")
    result = library.summarize(runs_dir, warn)
    for run in result.runs:
        accuracies = accuracy_cells(
            run.best_val_accuracy, run.last_val_accuracy, run.test_accuracy, run.selected_by, run.best_metric
        )
        status, epochs = f"[{COLORS[run.status]}]{run.status}[/]", f"{run.epochs_done}/{run.epochs}"
        rows.add_row(run.name, run.model, run.data, status, epochs, *accuracies, ago(run.updated))
    if not result.runs:
        output.show(f"No runs in {runs_dir.absolute()}. Train one: resnet-ops train")
    else:
        output.show(rows, *accuracy_legend(any(run.fit_all for run in result.runs)))
    output.end(result)
