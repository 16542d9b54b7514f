"""The defaults that depend on images and device: the network, and the recipe of photos that begin from weights.

Each is named in the output, with its reason; what a user gives always counts instead.
"""

from collections.abc import Iterator

from resnet_ops.config import AUTO, IMAGENET_WEIGHTS, TrainConfig
from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.sources import MAX_NATIVE_SIDE
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipes.reading import configure
from resnet_ops.run_records import DataRecord

SMALL_IMAGES, PHOTOS, MANY_PHOTOS = "resnet20", "resnet18", "resnet50"  # networks
SMALLEST_PHOTO = 32  # pixels a side that networks of the ImageNet family need
FINETUNE = "finetune"  # recipe
# With fewer photos ImageNet's weights nearly always win, and ResNet-50 has too much to learn (BiT, Kolesnikov et al.
# 2020, fig. 4; He et al. 2019, Rethinking ImageNet Pre-training, sec. 5, has scratch catch up from 10,000s of images).
FEW_PHOTOS = 20_000


def are_photos(data: DataRecord) -> bool:
    """Return whether images are too large for the CIFAR family, whose last stage still sees a quarter of each side."""
    return max(data.height, data.width) > MAX_NATIVE_SIDE and min(data.height, data.width) >= SMALLEST_PHOTO


def imagenet_network(device: Device) -> str:
    """Return the network of `--model auto --weights imagenet`."""
    return PHOTOS if device == "cpu" else MANY_PHOTOS


def choose_network(config: TrainConfig, data: DataRecord, device: Device) -> tuple[str, str]:
    """Return the network of `--model auto`, and why, in a few words."""
    size, place = f"{data.width}x{data.height} pixels", "on a CPU" if device == "cpu" else "on a GPU"
    if config.weights == IMAGENET_WEIGHTS:
        return imagenet_network(device), f"pretrained weights, {place}"
    if not are_photos(data):
        return SMALL_IMAGES, size
    if device == "cpu":
        return PHOTOS, f"{size}, {place}"
    return (
        PHOTOS if data.train_images < FEW_PHOTOS else MANY_PHOTOS
    ), f"{data.train_images:,} images of {size}, {place}"


def with_recipe(config: TrainConfig, data: DataRecord) -> TrainConfig:
    """Return the configuration with the recipe `finetune` for photos with weights and no recipe; what was given stays.

    Raises:
        UserError: What was given and the recipe do not fit together.
    """
    if config.weights is None or config.recipe is not None or not are_photos(data):
        return config
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return configure(**given | {"recipe": FINETUNE})


def explain_choices(requested: TrainConfig, settled: TrainConfig, data: DataRecord, device: Device) -> Iterator[str]:
    """Yield what was chosen and why, and what pretrained weights would bring; nothing of the embedded images."""
    if requested.data in EMBEDDED:
        return
    if requested.model == AUTO:
        other_weights = requested.weights not in (None, IMAGENET_WEIGHTS)
        why = "that of the weights" if other_weights else choose_network(requested, data, device)[1]
        yield f"Network {settled.model}: {why}; --model chooses another."
    if settled.recipe != requested.recipe:
        yield f"Recipe {settled.recipe}: photos and pretrained weights; options override it, --recipe chooses another."
    if requested.weights is None and are_photos(data) and data.train_images < FEW_PHOTOS:
        yield (
            f"{data.train_images:,} photos are few to train from scratch: --weights {IMAGENET_WEIGHTS} begins from "
            "ImageNet's, for more accuracy in fewer epochs."
        )
