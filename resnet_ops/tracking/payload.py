"""The metrics, hyperparameters and tags of a run, the same for every tracking service.

How they are sent is in `tensorboard`, `mlflow` and `wandb`.
"""

import re
from collections.abc import Sequence

from resnet_ops.config import TrainConfig
from resnet_ops.config_base import as_typed
from resnet_ops.errors import UserError
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run

SERVICE_NAMES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
# Options that change where a run is and not how it is trained.
NOT_HYPERPARAMETERS = {*TrainConfig.changeable_on_resume(), "name", "runs_dir", "checkpoint_every", "num_to_keep"} - {
    "data",
    "val_data",
}


def scalars(epoch: Epoch) -> dict[str, float]:
    """Return an epoch's metrics; accuracies and errors are top-1, from 0 to 1, `step` counts all steps so far.

    Those of validation images are not there where there are none.
    """
    metrics = {
        "loss/train": epoch.train_loss,
        "loss/val": epoch.val_loss,
        "accuracy/train": 1 - epoch.train_error,
        "accuracy/val": epoch.val_accuracy,
        "error/train": epoch.train_error,
        "error/val": epoch.val_error,
        "top5_error/val": epoch.val_top5_error,
        "macro_recall/val": epoch.val_macro_recall,
        "macro_f1/val": epoch.val_macro_f1,
        "lr": epoch.lr,
        "images_per_second": epoch.images_per_second,
        "step": float(epoch.step),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def end_times_s(record: RunRecord, epochs: Sequence[Epoch]) -> list[float]:
    """Return when each epoch ended, in seconds since 1970, had the run never been paused.

    They are the same at each call, so that what is sent twice is the same twice.
    """
    now, times = record.created.timestamp(), []
    for epoch in epochs:
        now += epoch.seconds
        times.append(now)
    return times


def hyperparameters(record: RunRecord) -> dict[str, str | bool | int | float]:
    """Return the options, data and network that a run was trained with, not where it ran."""
    config, data = record.config, record.data
    values = {name: getattr(config, name) for name in type(config).model_fields if name not in NOT_HYPERPARAMETERS}
    plain = {n: v if isinstance(v, bool | int | float) else as_typed(v) for n, v in values.items() if v is not None}
    counts = {f"{split}_images": getattr(data, f"{split}_images") for split in ("train", "val", "test")}
    return plain | counts | {"parameters": record.parameters, "classes": len(data.class_names)}


def tags(run: Run, record: RunRecord) -> dict[str, str]:
    """Return a run's provenance: versions, data, pretrained weights, machine, folder."""
    weights = {"weights": record.start.origin, "weights_sha256": record.start.sha256} if record.start else {}
    versions = {f"version.{name}": version for name, version in record.versions.items()}
    return versions | {
        **weights,
        "data_fingerprint": record.data.fingerprint,
        "device": record.device,
        "world_size": str(record.world_size),
        "host": record.host,
        "run_dir": as_typed(run.path),
    }


def best_tags(run: Run, record: RunRecord, epochs: Sequence[Epoch]) -> dict[str, str]:
    """Return the epoch that was selected, how, its accuracy and the last one's, and the file of its weights."""
    select, weights = record.config.select, as_typed(run.best / "model.safetensors")
    best = max(epochs, key=lambda epoch: epoch.score(select))
    metric = best.selected_metric(select)
    if metric is None:
        return {"selected_on": "nothing: last epoch, fitted on all images", "best_weights": weights}
    return {
        "selected_on": "validation images",
        "selected_by": f"{select} {metric:.6f}",
        "best_epoch": str(best.epoch),
        "best_val_accuracy": f"{best.val_accuracy:.6f}",
        "last_val_accuracy": f"{epochs[-1].val_accuracy:.6f}",
        "best_weights": weights,
    }


def final_tags(record: RunRecord) -> dict[str, str]:
    """Return the accuracy on test images, once it is measured."""
    accuracy = record.best.test_accuracy if record.best else None
    return {} if accuracy is None else {"test_accuracy": f"{accuracy:.6f}"}


def full_name(run: Run) -> str:
    """Return a run's name; a trial's follows that of its search."""
    return f"{search}/{run.name}" if (search := search_name(run)) else run.name


def search_name(run: Run) -> str | None:
    """Return the name of the search that the run is a trial of, if it is one."""
    return run.path.parent.parent.name if run.path.parent.name == "trials" else None


def error_line(error: BaseException) -> str:
    """Return the message of an error's first cause, in a line, without credentials."""
    while not isinstance(error, UserError) and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])[:300].rstrip(".")


def without_credentials(text: str) -> str:
    """Return a text with user name and password removed from its URLs."""
    return re.sub(r"//[^/@\s]+@", "//", text)
