"""What is told of a run, the same wherever it is told: names, values, times."""

import re
from collections.abc import Sequence

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.options import as_typed
from resnet_ops.records import Epoch, RunRecord
from resnet_ops.runs import Run

NAMES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
NOT_HOW = {*TrainConfig.changeable_on_resume(), "name", "runs_dir", "checkpoint_every", "num_to_keep"}  # it is trained


def scalars(epoch: Epoch) -> dict[str, float]:
    """An epoch's metrics; errors are top-1, from 0 to 1, `step` counts all steps so far."""
    return {
        "loss/train": epoch.train_loss,
        "loss/val": epoch.val_loss,
        "error/train": epoch.train_error,
        "error/val": epoch.val_error,
        "lr": epoch.lr,
        "images_per_second": epoch.images_per_second,
        "step": float(epoch.step),
    }


def times_s(record: RunRecord, epochs: Sequence[Epoch]) -> list[float]:
    """When each epoch ended, in seconds since 1970, had the run never been paused.

    The same whenever it is asked, so that what is sent twice is the same twice.
    """
    now, times = record.created.timestamp(), []
    for epoch in epochs:
        now += epoch.seconds
        times.append(now)
    return times


def hyperparameters(record: RunRecord) -> dict[str, str | bool | int | float]:
    """How it is trained, and what; nothing of where."""
    config, data = record.config, record.data
    values = {name: getattr(config, name) for name in type(config).model_fields if name not in NOT_HOW}
    plain = {n: v if isinstance(v, bool | int | float) else as_typed(v) for n, v in values.items() if v is not None}
    counts = {"parameters": record.parameters, "train_images": data.train_images, "val_images": data.val_images}
    return plain | counts | {"classes": len(data.class_names)}


def tags(run: Run, record: RunRecord) -> dict[str, str]:
    """Where it comes from."""
    versions = {f"version.{name}": version for name, version in record.versions.items()}
    return versions | {
        "data_fingerprint": record.data.fingerprint,
        "device": record.device,
        "world_size": str(record.world_size),
        "host": record.host,
        "run_dir": as_typed(run.path),
    }


def best(run: Run, epochs: Sequence[Epoch]) -> dict[str, str]:
    """Which epoch validated best, and where its weights lie."""
    winner = max(epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    return {
        "best_epoch": str(winner.epoch),
        "best_val_accuracy": f"{winner.val_accuracy:.6f}",
        "best_weights": as_typed(run.best / "model.safetensors"),
    }


def full_name(run: Run) -> str:
    """A run's name; a trial's follows that of its search."""
    return f"{search}/{run.name}" if (search := search_of(run)) else run.name


def search_of(run: Run) -> str | None:
    """The search that the run is a trial of."""
    return run.path.parent.parent.name if run.path.parent.name == "trials" else None


def error_line(error: BaseException) -> str:
    """What went wrong at the root of it, in a line, with no credentials in it."""
    while not isinstance(error, UserError) and (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])[:300].rstrip(".")


def without_credentials(text: str) -> str:
    """URLs without the user's name and password."""
    return re.sub(r"//[^/@\s]+@", "//", text)
