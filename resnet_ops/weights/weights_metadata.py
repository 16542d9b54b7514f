"""The preprocessing and the classes that weights were trained with, by torchvision's and timm's own metadata."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from resnet_ops import files

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG_NAME = "config.json"  # beside timm's weights, in which the Hub keeps them
OLDER_HASHES = 8  # characters of the SHA-256 in torchvision's file names
# Of timm's options of a network, those that change nothing but the size of its tensors and its training.
HARMLESS_OPTIONS = {
    "num_classes",
    "in_chans",
    "img_size",
    "pretrained",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
}


class WeightsPreprocessing(BaseModel):
    """The preprocessing of the images that weights were trained on.

    `crop_share` is the side of the crop, which has `size`, to that of the resized image. `assumed` where it is no
    metadata's, but usual.
    """

    model_config = ConfigDict(frozen=True)

    mean: tuple[FiniteFloat, ...]
    std: tuple[FiniteFloat, ...]
    crop_share: float | None = Field(default=None, ge=0.1, le=1)
    interpolation: str = "bilinear"
    crop_mode: str = "center"
    size: tuple[int, int] | None = None
    assumed: bool = False

    def for_channels(self, channels: int) -> Self:
        """Return it for images of so many channels: for grey ones, with the mean over the colors."""
        if channels == len(self.mean):
            return self
        grey = {name: (sum(each) / len(each),) for name, each in (("mean", self.mean), ("std", self.std))}
        return self.model_copy(update=grey)


class WeightsMetadata(BaseModel):
    """Whatever is known of weights beside their tensors; `class_names` is () where it is not known.

    `network` is timm's name of the network, with the options that make it another one; tensors show neither
    anti-aliasing nor activations.
    """

    model_config = ConfigDict(frozen=True)

    network: str | None = None
    preprocessing: WeightsPreprocessing | None = None
    class_names: tuple[str, ...] = ()


def assumed_preprocessing(channels: int) -> WeightsPreprocessing | None:
    """Return what is usual for RGB images: ImageNet's constants; None for grey ones."""
    if channels != len(IMAGENET_MEAN):
        return None
    return WeightsPreprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD, assumed=True)


def torchvision_metadata(weights: Any) -> WeightsMetadata:
    """Return what torchvision knows of weights, a member of one of its enums."""
    transforms = weights.transforms()
    return WeightsMetadata(
        preprocessing=WeightsPreprocessing(
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            crop_share=transforms.crop_size[0] / transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
        ),
        class_names=tuple(weights.meta["categories"]),
    )


def timm_metadata(config: Path) -> WeightsMetadata | None:
    """Read what timm wrote beside weights: `pretrained_cfg` in config.json; None where that is not it."""
    network = None
    try:
        content = json.loads(files.read(config))
        network = _network(content)
        settings: Mapping[str, Any] = content.get("pretrained_cfg", content)
        names = content.get("label_names") or settings.get("label_names") or ()
        preprocessing = WeightsPreprocessing(
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            crop_share=settings.get("crop_pct"),
            interpolation=settings.get("interpolation", "bilinear"),
            crop_mode=settings.get("crop_mode") or "center",
            size=tuple(settings["input_size"][1:]) if "input_size" in settings else None,
        )
        return WeightsMetadata(preprocessing=preprocessing, class_names=tuple(names), network=network)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
        return WeightsMetadata(network=network) if network else None


def _network(content: Mapping[str, Any]) -> str | None:
    """Return the network that timm's config.json names, and what is unusual of it: 'resnet50 with act_layer silu'."""
    if (name := content.get("architecture")) is None:
        return None
    options = {k: v for k, v in dict(content.get("model_args") or {}).items() if k not in HARMLESS_OPTIONS}
    options |= {} if content.get("global_pool", "avg") == "avg" else {"global_pool": content["global_pool"]}
    return " ".join([str(name), *(f"with {option} {value}" for option, value in options.items())])[:200]


def find_metadata(path: Path, sha256: str) -> WeightsMetadata | None:
    """Return what is known of a file of weights: by timm's config.json beside it, or as torchvision's by its hash."""
    beside = timm_metadata(path.with_name(CONFIG_NAME))
    return beside or _torchvision_by_hash(sha256)


def hash_in_name(file: Path) -> str:
    """Return the beginning of the SHA-256 of a file of torchvision's, which its name ends in."""
    return file.stem.rpartition("-")[2]


def _torchvision_by_hash(sha256: str) -> WeightsMetadata | None:
    """Return the metadata of torchvision's weights whose file has this hash, of which its name has the beginning."""
    import torchvision.models as zoo  # takes a second

    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        for weights in zoo.get_model_weights(name):
            with contextlib.suppress(AttributeError):
                if hash_in_name(Path(weights.url)) == sha256[:OLDER_HASHES]:
                    return torchvision_metadata(weights)
    return None
