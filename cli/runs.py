"""`resnet-ops runs`: lists the runs in a folder as a table."""

from resnet_ops import runs as library
from resnet_ops.config import RunsConfig
from resnet_ops.formatting import percent

from .config_options import Debug, Json, Options, options_of
from .console import Output, ago, table, warn

COLORS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red"}


@options_of(RunsConfig)
def runs(options: Options, json: Json = False, debug: Debug = False) -> None:
    """List runs with network, dataset, status, best accuracy and age, newest first."""
    runs_dir = options.make(RunsConfig).runs_dir
    output = Output(json)
    rows = table("name", "model", "data", "status", ">epochs", ">accuracy", "when")
    result = library.summarize(runs_dir, warn)
    for run in result.runs:
        accuracy = "" if run.best_val_accuracy is None else percent(run.best_val_accuracy)
        status, epochs = f"[{COLORS[run.status]}]{run.status}[/]", f"{run.epochs_done}/{run.epochs}"
        rows.add_row(run.name, run.model, run.data, status, epochs, accuracy, ago(run.updated))
    output.show(rows if result.runs else f"No runs in {runs_dir.absolute()}. Train one: resnet-ops train")
    output.end(result)
