"""What is recorded of a run, and how runs differ: in their options, and in their accuracies beyond chance."""

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import Field

from resnet_ops import files
from resnet_ops.architectures import parse_name
from resnet_ops.config import NOT_OF_THE_TRAINING, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.reporting.export_records import read_export_records
from resnet_ops.results import Result
from resnet_ops.run_records import Epoch, RunRecord, RunSummary
from resnet_ops.runs import Run, distinct_names, summary_of
from resnet_ops.significance import MeasuredAccuracy, compare
from resnet_ops.training.overview import unusual_options


class RunDescription(RunSummary):
    """A run, with what it is in full."""

    parameters: int = Field(description="Number of parameters of the network.")
    device: str = Field(description="cpu or cuda.")
    world_size: int = Field(description="Number of workers.")
    host: str = Field(description="Host of the command that started it.")
    versions: dict[str, str] = Field(description="Versions of the libraries that it was started with.")
    copies_warning: str = Field(
        description='What is said of its accuracy where validation images are training images, too; "" elsewhere.'
    )
    augmentation: str = Field(description="Augmentation of the training images, in words.")
    shortcut: str | None = Field(description="Type of its shortcut connections; null where it has none.")
    options: dict[str, Any] = Field(
        description="Options that differ from those of its recipe, and from the defaults for its images."
    )
    training_s: float = Field(description="Seconds that its epochs took in all.")
    best_weights: files.Place | None = Field(description="The weights of the best epoch.")
    onnx: tuple[files.Place, ...] = Field(
        description="Files in its export folder, of whichever of its weights: `validate` tells."
    )
    not_of_best: tuple[files.Place, ...] = Field(
        description="Those of them that were exported from weights other than the best ones now; by their own word, "
        "where no record of their verification is beside them."
    )
    curve: tuple[Epoch, ...] = Field(description="The metrics of each epoch.")


class AccuracyDifference(Result):
    """Test of whether one run is better than another, on the validation images of both."""

    better: str = Field(
        description="Name of the run of the higher accuracy; with its folder, where several have that name."
    )
    worse: str = Field(description="That of the other one.")
    difference: float = Field(description="Of their top-1 accuracies, from 0 to 1.")
    p_value: float = Field(description="Of an exact test, corrected for the number of pairs (Holm 1979).")
    beyond_chance: bool = Field(description="Whether it is more than chance explains, at the level of 5%.")


class RunComparison(Result):
    """Some runs beside each other."""

    runs: tuple[RunSummary, ...]
    options: dict[str, list[Any]] = Field(description="Options in which they differ: the value of each run.")
    differences: tuple[AccuracyDifference, ...] = Field(
        description="Of each pair of runs with the same validation images, the largest first."
    )
    tests: str = Field(description="Which tests these are; empty where there are none.")


def describe_run(run: Run) -> RunDescription:
    """Describe a run by what is recorded in its directory.

    Raises:
        UserError: There is no run, or run.json is damaged.
    """
    record = run.read()
    curve = record.curve(run.epochs())
    weights = run.best / "model.safetensors"
    exported = [each for each in read_export_records(run) if each.state != "gone" and each.file.suffix == ".onnx"]
    return RunDescription(
        **dict(summary_of(run, record)),
        parameters=record.parameters,
        device=record.device,
        world_size=record.world_size,
        host=record.host,
        versions=record.versions,
        copies_warning=record.data.copies_warning,
        augmentation=record.augmentation,
        shortcut=record.config.shortcut,
        options=unusual_options(record),
        training_s=sum(epoch.seconds for epoch in curve),
        best_weights=weights if files.is_file(weights) else None,
        onnx=tuple(each.file for each in exported),
        not_of_best=tuple(each.file for each in exported if each.is_of_best is False),
        curve=tuple(curve),
    )


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Compare two or more runs.

    Raises:
        UserError: There is but one, one does not exist, or its run.json is damaged.
    """
    if len({run.path for run in runs}) < 2:
        raise UserError("Two runs are needed to compare.", "List them with: resnet-ops runs")
    records = [run.read() for run in runs]
    summaries = tuple(summary_of(run, record) for run, record in zip(runs, records, strict=True))
    differences, tests = _differences(runs, records, summaries)
    options = configuration_differences([record.config for record in records], NOT_OF_THE_TRAINING)
    if "shortcut" in options and _have_default_shortcuts(records):
        del options["shortcut"]
    return RunComparison(runs=summaries, options=options, differences=differences, tests=tests)


def _have_default_shortcuts(records: Sequence[RunRecord]) -> bool:
    return all(record.config.shortcut in (None, parse_name(record.config.model).default_shortcut) for record in records)


def configuration_differences(configs: Sequence[TrainConfig], left_out: Collection[str]) -> dict[str, list[Any]]:
    """Return the options in which runs differ, but for those `left_out`: the value of each run, as in run.json."""
    stored = [config.model_dump(mode="json", exclude=set(left_out)) for config in configs]
    values = {name: [each[name] for each in stored] for name in stored[0]}
    return {name: of_each for name, of_each in values.items() if any(value != of_each[0] for value in of_each)}


def _differences(
    runs: Sequence[Run], records: Sequence[RunRecord], summaries: Sequence[RunSummary]
) -> tuple[tuple[AccuracyDifference, ...], str]:
    """Test the runs that were validated on the same images as the first one that was."""
    validated = [
        (run, record.data, summary.best_val_accuracy)
        for run, record, summary in zip(runs, records, summaries, strict=True)
        if summary.best_val_accuracy is not None
    ]
    measured = {
        run: MeasuredAccuracy.of(accuracy, data.val_images, run.val_correct())
        for run, data, accuracy in validated
        if (data.fingerprint, data.val_images) == (validated[0][1].fingerprint, validated[0][1].val_images)
    }
    if len(measured) < 2:
        return (), ""
    tests, differences, names = compare(measured), [], distinct_names([run.path for run in runs])
    for pair, p_value in tests.corrected.items():
        better, worse = sorted(pair, key=lambda run: -measured[run].correct)
        points = measured[better].correct - measured[worse].correct
        differences.append(
            AccuracyDifference(
                better=names[better.path],
                worse=names[worse.path],
                difference=points / measured[better].images,
                p_value=p_value,
                beyond_chance=tests.differ(better, worse),
            )
        )
    return tuple(sorted(differences, key=lambda each: -each.difference)), tests.name
