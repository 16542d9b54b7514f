"""Sample searches with numbers that the tests choose, written to disk."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resnet_ops.machine import versions
from resnet_ops.run_records import DataRecord, Epoch
from resnet_ops.runs import Run
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.results import Search, SearchRecord, Trial
from resnet_ops.tuning.space import read_space

IMAGES = 500
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
DATA = DataRecord(
    name="made",
    fingerprint="0" * 64,
    class_names=("cat", "dog"),
    train_images=2000,
    val_images=IMAGES,
    channels=3,
    height=32,
    width=32,
)


def epochs(errors: Sequence[float]) -> list[Epoch]:
    return [
        Epoch(
            epoch=number,
            step=10 * number,
            train_loss=1.0,
            train_error=error / 2,
            val_loss=error,
            val_error=error,
            lr=0.1,
            images_per_second=1000.0,
            seconds=2.0,
        )
        for number, error in enumerate(errors, start=1)
    ]


def trial(number: int, model: str, errors: Sequence[float], **fields: Any) -> tuple[Trial, list[Epoch]]:
    """Return a trial and its epochs, made of the errors of these."""
    kind = "plain" if model.startswith("plain") else "resnet"
    depth = int(model.removeprefix(kind))
    best = min(range(len(errors)), key=errors.__getitem__) if errors else None
    values: dict[str, Any] = {
        "lr": 0.1,
        "options": {"model": model},
        "status": "finished",
        "epochs": len(errors),
        "parameters": 10_000 * depth,
        "val_accuracy": None if best is None else 1 - errors[best],
        "last_val_accuracy": None if best is None else 1 - errors[-1],
        "best_epoch": None if best is None else best + 1,
        "seconds": 2.0 * len(errors),
        **fields,
    }
    return Trial(id=number, model=model, depth=depth, **values), epochs(errors)


def search(folder: Path, *trials: tuple[Trial, list[Epoch]], data: DataRecord = DATA) -> Search:
    """Write a search with these trials."""
    folder.mkdir(parents=True)
    result = Search(Run(folder))
    result.write(
        SearchRecord(
            name=folder.name,
            config=TuneConfig(),
            space=read_space(TuneConfig()),
            data=data,
            device="cpu",
            epochs=4,
            planned=12,
            created=WHEN,
            code="0" * 64,
            versions=versions(),
        )
    )
    for each, metrics in trials:
        run = result.trial_run(each)
        run.path.mkdir(parents=True)
        run.write_epochs(metrics)
    if trials:
        result.write_trials(each for each, _ in trials)
    return result
