"""The pretrained weights that a training begins with: from the option to the network of each worker.

The job's driver reads them once and keeps them in the run's folder; workers load them from there, and a training that
goes on from a checkpoint needs them no more. Reading of files is in `resnet_ops.weights`, imported where asked for.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from resnet_ops import files, runs
from resnet_ops.architectures import parse_name
from resnet_ops.config import AUTO, IMAGENET_WEIGHTS, TrainConfig
from resnet_ops.config_base import image_size_text, parse_image_size
from resnet_ops.data.class_labels import are_numbers
from resnet_ops.data.image_sizes import IMAGE_SIZE, stored_size
from resnet_ops.data.sources import Source
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.formatting import percent
from resnet_ops.orchestration.placement import Device
from resnet_ops.run_records import RunRecord, StartRecord
from resnet_ops.runs import Run
from resnet_ops.significance import wilson_interval
from resnet_ops.training.defaults import imagenet_network
from resnet_ops.training.observer import Observer

if TYPE_CHECKING:
    from resnet_ops.training.checkpoint import Checkpoint
    from resnet_ops.training.trainer import Trainer
    from resnet_ops.weights.pretrained import PretrainedWeights


def start_weights(
    config: TrainConfig, device: Device, observer: Observer
) -> tuple[TrainConfig, "PretrainedWeights | None"]:
    """Read the weights that `config.weights` means.

    Returns:
        The configuration, with what follows from them: the network of `--model auto`, the type of shortcuts, and the
        side that images are resized to; and the weights, None where none are asked for.

    Raises:
        UserError: There are none, or they are not of the network.
    """
    if config.weights is None:
        return config, None
    from resnet_ops.weights import pretrained

    if config.model == AUTO and config.weights == IMAGENET_WEIGHTS:
        config = config.model_copy(update={"model": imagenet_network(device)})
    weights = read_weights(config, observer)
    if config.model == AUTO:
        config = config.model_copy(update={"model": weights.info.model})
    pretrained.check_model(weights.info, config.model)
    for note in weights.notes:
        observer.warn(note)
    return _settle(config, weights), weights


def read_weights(config: TrainConfig, observer: Observer) -> "PretrainedWeights":
    """Read the weights that `config.weights` means: of whatever network.

    Raises:
        UserError: There are none, or they cannot be read.
    """
    from resnet_ops.training import checkpoint as checkpoints
    from resnet_ops.weights import pretrained
    from resnet_ops.weights.locate import locate

    assert config.weights is not None
    try:
        located = locate(config.weights, config.model, observer.warn)
    except UserError as error:
        if error.exit_code != WORK_FAILED:
            raise
        others = "Or give others, --weights FILE or your run, or leave --weights out: from scratch, less accurate."
        raise error.copy_with(remedy=f"{error.remedy} {others}") from None
    if located is None:
        checkpoint, refused = checkpoints.read_best(_find_run(config))
        for reason in refused:
            observer.warn(f"Skipping a checkpoint: {reason}")
        return _of_checkpoint(checkpoint, f"run {config.weights}")
    if checkpoints.is_checkpoint(located.path):
        return _of_checkpoint(checkpoints.read(located.path), located.origin)
    folder = Run(located.path.parent)
    if located.path == folder.weights_file and files.is_file(folder.search_file):  # what every trial begins with
        return pretrained.read_saved(located.path)
    return pretrained.read(located.path, located.origin, located.metadata, config.weights_key)


def _find_run(config: TrainConfig) -> Run:
    assert config.weights is not None
    try:
        return runs.find_or_open(config.runs_dir, config.weights, [IMAGENET_WEIGHTS])
    except UserError as error:
        raise error.copy_with(
            cause=f"--weights {config.weights}: there is no such file, and no run of that name in {config.runs_dir}.",
            remedy=f"Others are imagenet and hf:owner/name. {error.remedy}",
        ) from None


def _of_checkpoint(checkpoint: "Checkpoint", origin: str) -> "PretrainedWeights":
    """Return the weights of a checkpoint of ours, whose preprocessing and classes are known."""
    from resnet_ops.weights.pretrained import PretrainedWeights, WeightsInfo
    from resnet_ops.weights.weights_metadata import WeightsPreprocessing

    info = checkpoint.info
    share = info.height / info.stored[0] if info.stored else None
    return PretrainedWeights(
        WeightsInfo(
            origin=origin,
            sha256=checkpoint.sha256,
            model=info.model,
            shortcut=info.shortcut,
            channels=info.channels,
            classes=len(info.class_names),
            class_names=() if are_numbers(info.class_names) else info.class_names,
            preprocessing=WeightsPreprocessing(mean=info.mean, std=info.std, crop_share=share),
            data_fingerprint=info.data_fingerprint,
            held_out=info.held_out,
            fitted_on_all=info.fitted_on_all,
            began_from=info.began_from,
        ),
        checkpoint.model,
    )


def _settle(config: TrainConfig, weights: "PretrainedWeights") -> TrainConfig:
    """Return the configuration with what follows from the weights.

    Raises:
        UserError: Other shortcuts are asked for than they have.
    """
    info, steps = weights.info, weights.info.preprocessing
    shortcut = info.shortcut or ("A" if parse_name(config.model).kind == "resnet" else None)
    if config.shortcut not in (None, shortcut):
        raise UserError(
            f"{info.origin} has shortcuts of type {shortcut}, not {config.shortcut}.",
            f"Use --shortcut {shortcut}, or remove it." if shortcut else "Remove --shortcut.",
        )
    resize = config.resize
    if resize is None and steps and steps.crop_share:
        size = parse_image_size(config.image_size or IMAGE_SIZE)
        resize = image_size_text(stored_size(size, crop_share=steps.crop_share))
    return config.model_copy(update={"shortcut": shortcut, "resize": resize})


def with_start(
    source: Source, config: TrainConfig, weights: "PretrainedWeights | None", observer: Observer
) -> tuple[Source, StartRecord | None]:
    """Return the images with the normalization of the weights, and what the run's record says of these; and say it.

    Raises:
        UserError: The weights do not fit the images.
    """
    if weights is None:
        return source, None
    from resnet_ops.weights.adapt import choose_head

    info, data = weights.info, source.record
    if data.channels > info.channels:
        raise UserError(
            f"{info.origin} has weights for grey images; those of {data.name} have colors.",
            "Use weights for RGB images, or convert the images to grey.",
        )
    if data.channels < info.channels and info.architecture.kind not in ("resnet", "plain"):
        raise UserError(
            f"{info.origin} has weights for colors; the images of {data.name} are grey, and the first layer of "
            f"{info.model} cannot be folded for them.",
            "Use a ResNet, or convert the images to RGB.",
        )
    expected = config.expect is not None
    head, reason = choose_head(info, data.class_names, data.fingerprint, numbered=data.numbered, expected=expected)
    kept = (
        "with their own head" if head == "kept" else f"with a new head for {len(data.class_names):,} classes ({reason})"
    )
    folded = ", the first layer folded for grey images" if data.channels < info.channels else ""
    observer.warn(f"Beginning from {info.origin}, {kept}{folded}.")
    if (steps := info.preprocessing) is not None:
        steps = steps.for_channels(data.channels)
        if steps.assumed:
            observer.warn(
                f"Nothing says how images were normalized for {info.origin}: ImageNet's constants are assumed."
            )
        if steps.interpolation != "bilinear" and data.stored:
            observer.warn(f"{info.origin}: trained on images resized {steps.interpolation}; here they are bilinear.")
        source = replace(source, record=data.model_copy(update={"mean": steps.mean, "std": steps.std}))
    return source, StartRecord(**dict(info.pretrained), sha256=info.sha256, head=head)


def settle_head(requested: TrainConfig, settled: TrainConfig, start: StartRecord | None) -> TrainConfig:
    """Return the configuration without the learning rate of a new head where the weights keep their own.

    Args:
        requested: The configuration with the options that were typed, and those of a recipe that was.
        settled: That with a recipe that was chosen for it.
        start: What the weights begin with.
    """
    if start is None or start.head == "new" or "head_lr" in requested.model_fields_set:
        return settled
    return settled.model_copy(update={"head_lr": TrainConfig.default("head_lr")})


def store_weights(run: Run, weights: "PretrainedWeights | None") -> None:
    """Keep weights in the folder of a run, unless they lie in that of the search that it is a trial of.

    Raises:
        PausedError: The disk is full.
    """
    if weights is None or files.is_file(run.weights_file):
        return
    from resnet_ops.weights import pretrained

    above = _of_search(run)
    if files.is_file(above.search_file) and files.is_file(above.weights_file):
        return
    pretrained.save(run.weights_file, weights)


def _of_search(run: Run) -> Run:
    """Return the run of the search that a run would be a trial of: it lies in its folder trials/."""
    return Run(run.path.parent.parent)


def begin_from_weights(run: Run, record: RunRecord, trainer: "Trainer") -> None:
    """Load the weights that a run begins with, and measure them where an accuracy is expected; on every worker.

    Raises:
        UserError: They are gone, or do not reach that accuracy.
    """
    from resnet_ops.weights import pretrained
    from resnet_ops.weights.adapt import adapt, load_into

    assert record.start is not None
    own = run.weights_file
    weights = pretrained.read_saved(own if files.is_file(own) else _of_search(run).weights_file, record.start.sha256)
    tensors = adapt(weights, record.data.class_names, record.data.channels, record.start.head)
    for network in trainer.networks:
        load_into(network, tensors)
    if record.config.expect is not None:
        _check_expected(run, record, trainer)


def _check_expected(run: Run, record: RunRecord, trainer: "Trainer") -> None:
    """Check that the weights have the expected accuracy, or more, on the validation images, within chance."""
    assert record.config.expect is not None
    measured, images = trainer.evaluate(), record.data.val_images
    assert measured is not None
    accuracy, expected = 1 - measured.error, record.config.expect / 100
    reached = f"{percent(accuracy)} on the {images:,} validation images of {record.data.name}, before training"
    if wilson_interval(accuracy, images)[1] < expected:
        raise UserError(
            f"The pretrained weights reach {reached}: less than the {percent(expected)} expected, beyond chance.",
            "Check that images, order of classes, --image-size and --resize are those of the weights.",
            WORK_FAILED,
        )
    if trainer.group.rank == 0:
        run.log_event(f"The pretrained weights reach {reached}; {percent(expected)} was expected.")
