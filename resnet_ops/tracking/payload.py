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
NOT_HYPERPARAMETERS = {*TrainConfig.changeable_on_resume(), "name", "runs_dir", "checkpoint_every", "num_to_keep"}


def scalars(epoch: Epoch) -> dict[str, float]:
    """Return an epoch's metrics; errors are top-1, from 0 to 1, `step` counts all steps so far."""
    return {
        "loss/train": epoch.train_loss,
        "loss/val": epoch.val_loss,
        "error/train": epoch.train_error,
        "error/val": epoch.val_error,
        "lr": epoch.lr,
        "images_per_second": epoch.images_per_second,
        "step": float(epoch.step),
    }


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
    counts = {"parameters": record.parameters, "train_images": data.train_images, "val_images": data.val_images}
    return plain | counts | {"classes": len(data.class_names)}


def tags(run: Run, record: RunRecord) -> dict[str, str]:
    """Return a run's provenance: versions, data, machine, folder."""
    versions = {f"version.{name}": version for name, version in record.versions.items()}
    return versions | {
        "data_fingerprint": record.data.fingerprint,
        "device": record.device,
        "world_size": str(record.world_size),
        "host": record.host,
        "run_dir": as_typed(run.path),
    }


def best_tags(run: Run, epochs: Sequence[Epoch]) -> dict[str, str]:
    """Return the epoch that validated best, its accuracy and the file of its weights."""
    best = max(epochs, key=lambda epoch: epoch.score)
    return {
        "best_epoch": str(best.epoch),
        "best_val_accuracy": f"{best.val_accuracy:.6f}",
        "best_weights": as_typed(run.best / "model.safetensors"),
    }


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
