"""`resnet-ops runs`: what has been trained."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape

from resnet_ops import runs as library
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.runs import Run, RunRecord

from .console import Output, ago, err, table
from .options import Debug, Json, RunsDir

COLORS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red"}


def runs(
    runs_dir: Annotated[Path, RunsDir] = TrainConfig.default("runs_dir"), json: Json = False, debug: Debug = False
) -> None:
    """List the runs: network, data, status, best accuracy, when. The newest comes first."""
    output = Output(json)
    rows = []
    shown = table("name", "model", "data", "status", ">epochs", ">accuracy", "when")
    for run in library.in_folder(runs_dir):
        try:
            record = run.read()
        except UserError as error:
            err.print(f"[yellow]note:[/] {escape(str(error))}", soft_wrap=True)
            continue
        row = _row(run, record)
        rows.append(row)
        status = f"[{COLORS[record.status]}]{record.status}[/]"
        epochs = f"{row['epochs_done']}/{row['epochs']}"
        best = row["best_val_accuracy"]
        accuracy = percent(best) if isinstance(best, float) else ""
        shown.add_row(run.name, record.config.model, record.data.name, status, epochs, accuracy, ago(record.updated))
    output.show(shown if rows else f"No runs in {runs_dir.absolute()}. Train one: resnet-ops train")
    output.end({"runs_dir": runs_dir.absolute(), "runs": rows})


def _row(run: Run, record: RunRecord) -> dict[str, object]:
    epochs = run.epochs()
    best = max(epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss), default=None)
    return {
        "name": run.name,
        "run_dir": run.path,
        "status": record.status,
        "reason": record.reason,
        "model": record.config.model,
        "data": record.data.name,
        "epochs_done": len(epochs),
        "epochs": record.config.epochs,
        "best_val_accuracy": None if best is None else best.val_accuracy,
        "best_epoch": None if best is None else best.epoch,
        "created": record.created.isoformat(),
        "updated": record.updated.isoformat(),
    }
