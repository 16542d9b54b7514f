"""The whole of `resnet-ops evaluate`: open the network and the images, measure, write the folder, record the accuracy.

The steps themselves are in the other modules of this package.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_ops import files
from resnet_ops.class_metrics import MajorityBaseline
from resnet_ops.config_base import as_typed
from resnet_ops.data.dataset import image_count
from resnet_ops.errors import RunHeldError, UserError
from resnet_ops.evaluation import evaluation_files
from resnet_ops.evaluation.classification import ClassifiedImages, classify_images
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.evaluated_network import EvaluatedNetwork, open_network
from resnet_ops.evaluation.evaluation_metrics import check_expectation, measure
from resnet_ops.evaluation.label_issues import find_label_issues, most_confident_errors
from resnet_ops.evaluation.labeled_images import LabeledSplit, SeenImages, count_seen, open_images
from resnet_ops.evaluation.results import ClassificationError, EvaluateResult
from resnet_ops.formatting import percent
from resnet_ops.reporting.predictions import MISTAKES
from resnet_ops.training.checkpoint import best_sha256
from resnet_ops.training.defaults import suggest_at_chance

Warn = Callable[[str], None]


def evaluate(
    config: EvaluateConfig | Path | str,
    warn: Warn = lambda _: None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
    started_at: float | None = None,
) -> EvaluateResult:
    """Evaluate a network on labeled images, and write a folder with the metrics, a page and all predictions.

    The accuracy of a run's selected weights on the test images of its own dataset is recorded in the run.

    Args:
        config: The options, or the name or path of a run or an ONNX file.
        warn: Called with warnings for the user.
        on_progress: Called now and then with the number of images that are done, and of all.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such network, it is not known which images to evaluate on, they are missing or of other
            classes, or the folder to write holds something else.
    """
    started_at = started_at or time.time()
    config = config if isinstance(config, EvaluateConfig) else EvaluateConfig.of(run=as_typed(config))
    network = open_network(config, warn)
    images = open_images(config, network)
    folder = config.output.expanduser() if config.output else _default_folder(network, images)
    _check_folder(folder)
    for note in images.notes:
        warn(note)
    began = time.monotonic()
    classified = classify_images(network, images, on_progress)
    seconds = time.monotonic() - began
    if classified.bad_images:
        bad, first = image_count(classified.bad_images), classified.bad[0]
        warn(f"Left out {bad} that cannot be decoded, first: {first.name}: {first.reason}.")
    metrics = measure(classified, network.class_names)
    missing = tuple(each.name for each in metrics.classes if not each.images)
    if missing:
        warn(f"There are no images of {len(missing)} of the network's classes, such as {missing[0]}.")
    seen = count_seen(images, network, classified.rows)
    issues = find_label_issues(classified)
    if config.suspects and (seen.trained_on is None or seen.trained_on):
        warn(_memorization_note(seen))
    recorded = seen.is_unseen and _record(network, images, classified, metrics.top1)
    result = EvaluateResult(
        **dict(metrics),
        name=network.name,
        kind=network.kind,
        file=network.file,
        model=network.model,
        precision=network.precision,
        device=network.device,
        data=images.name,
        split=images.split,
        is_own_data=images.is_own,
        trained_on=seen.trained_on,
        chose_epoch=seen.chose_epoch,
        pretrained_on=seen.origin_saw,
        fitted_temperature=bool(seen.fitted_temperature),
        seen=seen.text,
        left_out=images.left_out,
        missing_classes=missing,
        bad_images=classified.bad_images,
        first_bad_images=classified.bad,
        mistakes=_errors(network, images, classified, most_confident_errors(classified, MISTAKES)),
        label_issues=len(issues),
        suspects=_errors(network, images, classified, issues[: config.suspects]),
        majority_baseline=MajorityBaseline.of(
            [(each.correct, each.images) for each in metrics.classes],
            suggest_at_chance(network.run.read_as_written()) if network.run is not None else "",
        ),
        expectation=None
        if config.expect is None
        else check_expectation(config.expect, metrics.correct, metrics.images),
        recorded=recorded,
        folder=folder,
        page=folder / evaluation_files.PAGE,
        predictions=folder / evaluation_files.PREDICTIONS,
        images_per_second=len(classified) / seconds,
        total_s=time.time() - started_at,
    )
    files.write_folder(folder, evaluation_files.folder_contents(result, network, images, classified))
    return result


def expectation_text(result: EvaluateResult) -> str:
    """Return in a sentence whether an expected accuracy is met; "" where none is expected."""
    if (expected := result.expectation) is None:
        return ""
    below = result.top1 < expected.percent / 100
    verdict = (
        "not below" if not below else "below by no more than chance" if expected.met else "below by more than chance"
    )
    return (
        f"{percent(result.top1)} on {result.images:,} images is {verdict}: {expected.percent:g}% is expected "
        f"(p = {expected.p_value:.2g}, one-sided exact binomial test)."
    )


def _default_folder(network: EvaluatedNetwork, images: LabeledSplit) -> Path:
    """Return evaluation-SPLIT in the folder of the run, or FILE-evaluation-SPLIT beside the file."""
    parts = [] if images.is_own else [images.name]
    which = "-".join(["evaluation", *parts, *([images.split] if images.split else [])])
    if network.kind == "run" and network.run is not None:
        return network.run.path / which
    return network.file.with_name(f"{network.file.stem}-{which}").absolute()


def _check_folder(folder: Path) -> None:
    """Refuse to replace a folder that is no evaluation.

    Raises:
        UserError: It is a file, or there are other files in it, or its parent does not exist.
    """
    own = {evaluation_files.JSON, evaluation_files.MARKDOWN, evaluation_files.PAGE, evaluation_files.PREDICTIONS}
    others = sorted(path.name for path in files.listed(folder) if path.name not in own)
    if files.is_file(folder) or others:
        what = f"contains {others[0]}" if others else "is a file"
        raise UserError(f"{folder} is no evaluation that could be replaced: it {what}.", "Choose another --output.")
    if not files.is_remote(folder) and not folder.absolute().parent.is_dir():
        raise UserError(f"Folder {folder.absolute().parent} does not exist.", "Create it first.")
    files.check_writable(folder.absolute().parent if not files.is_remote(folder) else folder)


def _memorization_note(seen: SeenImages) -> str:
    if seen.trained_on is None:
        which = "Whether the network was trained on these images is not known; of those that it was"
    else:
        which = f"The network was trained on {seen.trained_on:,} of these images, of which"
    return (
        f"{which} it may have memorized the labels, wrong ones too: --suspects finds more among validation images, or "
        "others that were held out of training."
    )


def _errors(
    network: EvaluatedNetwork, images: LabeledSplit, classified: ClassifiedImages, positions: np.ndarray
) -> tuple[ClassificationError, ...]:
    names = network.class_names
    return tuple(
        ClassificationError(
            path=images.encoded.name(int(classified.rows[n])),
            label=names[classified.labels[n]],
            prediction=names[classified.predicted[n]],
            probability=float(classified.confidence[n]),
            label_probability=float(classified.label_probability[n]),
        )
        for n in positions.tolist()
    )


def _record(network: EvaluatedNetwork, images: LabeledSplit, classified: ClassifiedImages, accuracy: float) -> bool:
    """Record the accuracy of a run's selected weights on its own test images in run.json."""
    if network.kind != "run" or network.run is None or images.split != "test" or images.left_out or not images.is_own:
        return False
    with contextlib.suppress(RunHeldError), network.run.lock():  # else it is being trained further
        record = network.run.read_as_written()
        # Test images are not in the fingerprint: a copy may have others, also where the original is gone.
        if os.path.realpath(record.config.data) != os.path.realpath(images.path):
            return False
        if classified.bad_images > record.config.max_bad_images * len(images):
            return False
        # The run may have been trained further meanwhile, or replaced.
        if record.best is None or best_sha256(network.run) != network.sha256:
            return False
        best = record.best.model_copy(update={"test_accuracy": accuracy, "test_images": len(classified)})
        network.run.write(record.model_copy(update={"best": best}))
        return True
    return False
