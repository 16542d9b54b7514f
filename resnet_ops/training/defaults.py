"""The defaults that depend on images and device: the network, and the recipe of photos that begin from weights.

Each is named in the output, with its reason; what a user gives always counts instead.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from resnet_ops.architectures import Architecture
from resnet_ops.class_metrics import MajorityBaseline
from resnet_ops.config import AUTO, IMAGENET_WEIGHTS, TrainConfig
from resnet_ops.data.class_labels import mirroring_harm
from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.image_sizes import MAX_NATIVE_SIDE
from resnet_ops.formatting import image_size, percent
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipe_config import ADAMW_DEFAULTS
from resnet_ops.recipes.reading import configure, usual_batch_size
from resnet_ops.run_records import DataRecord, RunRecord
from resnet_ops.runs import Run
from resnet_ops.training.observer import Observer

SMALL_IMAGES, PHOTOS, MANY_PHOTOS = "resnet20", "resnet18", "resnet50"  # networks
SMALLEST_PHOTO = 32  # pixels a side that networks of the ImageNet family need
FINETUNE = "finetune"  # recipe
# With fewer photos ImageNet's weights nearly always win, and ResNet-50 has too much to learn (BiT, Kolesnikov et al.
# 2020, fig. 4; He et al. 2019, Rethinking ImageNet Pre-training, sec. 5, has scratch catch up from 10,000s of images).
FEW_PHOTOS = 20_000
# Images whose BatchNorm statistics do no harm (Wu and He 2018, fig. 1: from 32 to 16 they cost 0.5 points).
FEWEST_NORMALIZED = 16
LONG_TRAINING_S = 20 * 60.0
SHORTER_SIDE, SHORTER_EPOCHS = 128, 10  # of a training that takes less


def are_photos(data: DataRecord) -> bool:
    """Return whether images are too large for the CIFAR family, whose last stage still sees a quarter of each side."""
    return max(data.height, data.width) > MAX_NATIVE_SIDE and min(data.height, data.width) >= SMALLEST_PHOTO


def imagenet_network(device: Device) -> str:
    """Return the network of `--model auto --weights imagenet`."""
    return PHOTOS if device == "cpu" else MANY_PHOTOS


def choose_network(config: TrainConfig, data: DataRecord, device: Device) -> tuple[str, str]:
    """Return the network of `--model auto`, and why, in a few words."""
    size, place = f"{image_size(data.height, data.width)} pixels", "on a CPU" if device == "cpu" else "on a GPU"
    if config.weights == IMAGENET_WEIGHTS:
        return imagenet_network(device), f"pretrained weights, {place}"
    if not are_photos(data):
        return SMALL_IMAGES, f"for {size}"
    if device == "cpu":
        return PHOTOS, f"for {size}, {place}"
    return (
        PHOTOS if data.train_images < FEW_PHOTOS else MANY_PHOTOS
    ), f"for {data.train_images:,} images of {size}, {place}"


def with_recipe(config: TrainConfig, data: DataRecord) -> TrainConfig:
    """Return the configuration with the recipe `finetune` for photos with weights and no recipe; what was given stays.

    Raises:
        UserError: What was given and the recipe do not fit together.
    """
    if config.weights is None or config.recipe is not None or not are_photos(data):
        return config
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return configure(**given | {"recipe": FINETUNE})


@dataclass(frozen=True)
class Choice:
    """A choice that the user left to the defaults: of which option, what was chosen, and why, in a few words."""

    option: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"--{self.option} {self.value}: {self.reason}."


def explain_choices(requested: TrainConfig, settled: TrainConfig, data: DataRecord, device: Device) -> Iterator[Choice]:
    """Yield what was chosen and why; nothing of the embedded images, of which it is known."""
    if requested.data in EMBEDDED:
        return
    if requested.model == AUTO:
        other_weights = requested.weights not in (None, IMAGENET_WEIGHTS)
        why = "that of the weights" if other_weights else choose_network(requested, data, device)[1]
        yield Choice("model", settled.model, why)
    if settled.recipe and settled.recipe != requested.recipe:
        yield Choice("recipe", settled.recipe, "photos and pretrained weights")
    if settled.batch_size != requested.batch_size:
        few = f"{data.train_images:,} training images are too few for the usual {requested.batch_size}"
        yield Choice("batch-size", str(settled.batch_size), few)
    if settled.lr == scaled_lr(requested, settled.batch_size):
        usual = f"{requested.lr:g} for {usual_batch_size(requested.recipe)}"
        yield Choice("lr", f"{settled.lr:g}", f"in proportion to the batch, {usual}")
    harm = mirroring_harm_of(data)
    if harm and requested.flip is None:
        yield Choice("flip", "off", f"no mirroring, as {harm}")


def suggest_weights(requested: TrainConfig, data: DataRecord) -> str | None:
    """Return what pretrained weights would bring; None where that is not known, or there are some."""
    if requested.weights is not None or not are_photos(data) or data.train_images >= FEW_PHOTOS:
        return None
    return (
        f"{data.train_images:,} photos are few to train from scratch: --weights {IMAGENET_WEIGHTS} begins from "
        "ImageNet's, for more accuracy in fewer epochs."
    )


def majority_baseline(run: Run, record: RunRecord) -> MajorityBaseline | None:
    """Return what always answering one class reaches on the validation images of a run; None where nothing measured."""
    return None if record.config.fit_all else MajorityBaseline.of(run.val_classes(), suggest_at_chance(record))


def suggest_at_chance(record: RunRecord) -> str:
    """Return what may help a network that is no better than always answering one class."""
    data = record.data
    has_weights = record.config.weights is not None or min(data.height, data.width) < SMALLEST_PHOTO
    return f"Try a lower --lr{' or more epochs' if has_weights else f', more epochs, or --weights {IMAGENET_WEIGHTS}'}."


def suggest_shorter(data: DataRecord, epochs: int, device: str, given: Collection[str], left_s: float) -> str | None:
    """Return how a long training of photos on a CPU takes less time; None where it is short, or all is given.

    Args:
        data: The images.
        epochs: Of the training, or of each trial of a search.
        device: Where it is trained.
        given: The options that the user gave, which are not suggested otherwise.
        left_s: How long it is estimated to take.
    """
    pixels = data.height * data.width
    if device != "cpu" or left_s <= LONG_TRAINING_S or pixels <= SHORTER_SIDE**2:
        return None
    shares = {}
    if "image_size" not in given:
        shares[f"--image-size {SHORTER_SIDE}"] = SHORTER_SIDE**2 / pixels
    if "epochs" not in given and epochs > SHORTER_EPOCHS:
        shares[f"--epochs {SHORTER_EPOCHS}"] = SHORTER_EPOCHS / epochs
    if not shares:
        return None
    share = math.prod(shares.values())
    return (
        f"{' '.join(shares)} takes about {f'1/{1 / share:.0f}' if share < 0.4 else percent(share, 0)} of it; "
        "Ctrl-C saves a checkpoint, --resume continues"
    )


def freezes_batchnorm(config: TrainConfig, architecture: Architecture, batch_size: int, workers: int) -> bool | None:
    """Return whether BatchNorm keeps the statistics of given weights: as asked for, or where it sees few images."""
    if config.freeze_batchnorm is None and config.weights is not None and sees_few(config, batch_size, workers):
        return architecture.has_batchnorm or None
    return config.freeze_batchnorm


def sees_few(config: TrainConfig, batch_size: int, workers: int) -> bool:
    """Return whether BatchNorm sees too few images at once for statistics of its own."""
    return batch_size // workers // config.accumulate < FEWEST_NORMALIZED and not config.sync_batchnorm


def usual_padding(data: DataRecord) -> int:
    """Return the padding of random crops: none where images are stored larger, and cropped as they are."""
    return 0 if data.stored else min(data.height, data.width) // 8


def scaled_lr(config: TrainConfig, batch_size: int) -> float | None:
    """Return SGD's usual learning rate for a batch smaller than the one it is for; None where another one counts.

    It is in proportion to the batch (Goyal et al. 2017, sec. 2.1; benchmarks/results/few_images.md). Batches that
    --auto-batch finds keep the rate, as larger ones want a warm-up as well.
    """
    if "lr" in config.model_fields_set or config.optimizer != "sgd" or config.auto_batch:
        return None
    usual = usual_batch_size(config.recipe)
    return None if batch_size >= usual else config.lr * batch_size / usual


def optimizer_defaults(config: TrainConfig) -> dict[str, float]:
    """Return the defaults of the optimizer for options that were not given."""
    if config.optimizer == "sgd":
        return {}
    return {name: value for name, value in ADAMW_DEFAULTS.items() if name not in config.model_fields_set}


def mirroring_harm_of(data: DataRecord) -> str | None:
    """Return why images should not be mirrored, by the names of their classes; None where nothing says so."""
    return None if data.numbered else mirroring_harm(data.class_names)


def report_defaults(requested: TrainConfig, settled: TrainConfig, device: str, observer: Observer) -> None:
    """Say what `check_training` chose for an optimizer or for fine-tuning, and warn of a precision that is slow."""
    if optimizer_defaults(requested):
        chosen = ", ".join(f"--{name.replace('_', '-')} {v:g}" for name, v in optimizer_defaults(requested).items())
        observer.warn(f"AdamW with {chosen}: its usual values, not those of SGD.")
    is_default = settled.recipe is None and settled.optimizer == "sgd" and "lr" not in requested.model_fields_set
    if settled.weights and is_default and settled.lr == settled.default("lr"):
        observer.warn(
            f"--lr {settled.lr:g}, the usual one of training from scratch, is high for pretrained weights: --recipe "
            f"{FINETUNE}, which photos get by themselves, has a lower one."
        )
    if settled.freeze_batchnorm and requested.freeze_batchnorm is None:
        observer.warn(
            "BatchNorm keeps the statistics of the given weights: those of fewer than "
            f"{FEWEST_NORMALIZED} images vary too much. --no-freeze-batchnorm updates them."
        )
    if device == "cpu" and settled.precision in ("bf16", "fp16"):
        observer.warn(f"--precision {settled.precision} is slower than fp32 on most CPUs.")


def warn_of_mirroring(requested: TrainConfig, data: DataRecord, observer: Observer) -> None:
    """Warn where the names of classes speak against the mirroring that was asked for."""
    if requested.flip and (harm := mirroring_harm_of(data)):
        observer.warn(f"Horizontal flip is on, but {harm}: --no-flip is probably more accurate.")
