"""Bring weights that were trained elsewhere into the form of a `Checkpoint`, with what is said of them.

Options say it, or their metadata. Reading them is in `resnet_ops.weights`.
"""

from collections.abc import Callable
from pathlib import Path

from resnet_ops.config_base import image_size_text, parse_image_size
from resnet_ops.data.image_sizes import stored_size
from resnet_ops.errors import UserError
from resnet_ops.export.config import ExportConfig
from resnet_ops.formatting import first_names
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo
from resnet_ops.weights import pretrained
from resnet_ops.weights.class_files import FORMS, read_class_names
from resnet_ops.weights.locate import LocatedWeights
from resnet_ops.weights.weights_metadata import WeightsPreprocessing, assumed_preprocessing


def read(located: LocatedWeights, config: ExportConfig, warn: Callable[[str], None] = lambda _: None) -> Checkpoint:
    """Read weights with a head, and settle what images and classes they are for.

    Raises:
        UserError: They cannot be read, do not belong to a given `config.model`, or an option does not fit them.
    """
    weights = pretrained.read(located.path, located.origin, located.metadata, config.weights_key)
    info = weights.info
    steps = info.preprocessing or assumed_preprocessing(info.channels)
    if config.model is not None:
        pretrained.check_model(info, config.model)
    model = config.model or info.model
    if not info.classes:
        raise UserError(
            f"{info.origin} has no head of one layer, such as fc.weight, to tell classes.",
            "Train one: resnet-ops train --weights",
        )
    if weights.unexplained:
        named = f", or name the network alone: --weights-key {weights.key}" if weights.key else ""
        raise UserError(
            f"{info.origin} has {first_names(weights.unexplained)} beside the tensors of {info.model}: with "
            "these its network may give other answers.",
            f"If it classifies without them, save it without them{named}; mean and deviation of images are given by "
            "--mean and --std.",
        )
    for note in weights.notes:
        warn(note)
    if info.shortcut is None and config.model is None:
        warn(
            f"{info.origin} has no weights of shortcuts: taken as {model}, with shortcuts of type A. A network without "
            f"any has the same tensors: --model {model.replace('resnet', 'plain')}"
        )
    size = parse_image_size(config.image_size or ("224" if info.architecture.family == "imagenet" else "32"))
    checkpoint_info = CheckpointInfo(
        model=model,
        shortcut=info.shortcut or ("A" if model.startswith("resnet") else None),
        class_names=_class_names(config.classes, info),
        channels=info.channels,
        height=size[0],
        width=size[1],
        stored=_stored(config, info, size),
        mean=_numbers("mean", config.mean, info.channels, steps.mean if steps else None),
        std=_numbers("std", config.std, info.channels, steps.std if steps else None),
        data="unknown",
        data_fingerprint="unknown",
        metrics=None,
    )
    _say_what_is_assumed(config, info.origin, steps, checkpoint_info, warn)
    return Checkpoint(located.path, checkpoint_info, info.sha256, weights.tensors, {}, {})


def _say_what_is_assumed(
    config: ExportConfig,
    origin: str,
    steps: WeightsPreprocessing | None,
    info: CheckpointInfo,
    warn: Callable[[str], None],
) -> None:
    options = {
        "mean": ",".join(format(number, "g") for number in info.mean),
        "std": ",".join(format(number, "g") for number in info.std),
        "resize": image_size_text(info.stored) if info.stored else "",
    }
    assumed = [name for name in options if getattr(config, name) is None]
    if steps is None or (steps.assumed and assumed):
        described = ", ".join(f"--{name} {options[name]}" for name in assumed if options[name])
        if described:
            warn(f"Nothing says how images were prepared for {origin}; assumed: {described}.")
        return
    if steps.interpolation != "bilinear" and info.stored:
        warn(f"{origin}: trained on images resized {steps.interpolation}; the file resizes them bilinearly.")
    if steps.crop_mode != "center":
        warn(f"{origin}: trained on images cropped by the mode {steps.crop_mode}; the file crops their center.")
    if steps.size not in (None, (info.height, info.width)) and config.image_size is None:
        warn(f"{origin}: trained on images of {image_size_text(steps.size)}; --image-size gives the file that size.")


def _stored(config: ExportConfig, info: pretrained.WeightsInfo, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the size that images are resized to before the crop; None where nothing is cropped."""
    share = info.preprocessing.crop_share if info.preprocessing else None
    if config.resize is None and not share and info.architecture.family != "imagenet":
        return None
    stored = stored_size(size, config.resize, share) if share else stored_size(size, config.resize)
    return None if stored == size else stored


def _class_names(file: Path | None, info: pretrained.WeightsInfo) -> tuple[str, ...]:
    if file is None:
        return info.class_names or tuple(str(number) for number in range(info.classes))
    names = read_class_names(file)
    if len(names) != info.classes:
        raise UserError(
            f"--classes {file} has {len(names)} classes; the weights have {info.classes}.",
            FORMS,
        )
    return names


def _numbers(name: str, typed: str | None, channels: int, known: tuple[float, ...] | None) -> tuple[float, ...]:
    if typed is None and known is None:
        raise UserError(
            "Nothing says how images were normalized for these weights, and grey ones have no usual mean and standard "
            "deviation.",
            "Give those used in training: --mean 0.5 --std 0.25",
        )
    numbers = tuple(float(number) for number in typed.split(",")) if typed else known or ()
    given = f"--{name} {','.join(format(number, 'g') for number in numbers)}"
    if len(numbers) != channels or (name == "std" and min(numbers) <= 0):
        raise UserError(f"{given} must be one number above 0 for each of {channels} channels.")
    if max(numbers) > 1:
        scaled = ",".join(format(number / 255, ".4g") for number in numbers)
        raise UserError(f"{given} is of pixels from 0 to 255; here they are from 0 to 1.", f"Use --{name} {scaled}")
    return numbers
