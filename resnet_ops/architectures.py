"""Networks by their names: kind, depth, family, and what follows of these, such as the smallest image.

The networks themselves are in models.py; nothing here knows torch, so that a wrong name is refused at once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_ops.errors import UserError, did_you_mean

Kind = Literal["resnet", "plain", "alexnet", "vgg", "googlenet"]
Family = Literal["cifar", "imagenet"]
Shortcut = Literal["A", "B", "C"]

IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# Depth by which they are named, and the smallest side of an image in pixels; of AlexNet as torchvision documents it.
BASELINES: dict[Kind, tuple[int, int]] = {"alexnet": (8, 63), "vgg": (19, 32), "googlenet": (22, 32)}
MAX_DEPTH = 10_000  # a guard against typing errors: the paper's deepest network has 1,202 layers


@dataclass(frozen=True)
class Architecture:
    """Kind, depth in weighted layers and family of a network, as its name says, e.g. `plain56`."""

    kind: Kind
    depth: int
    family: Family

    @property
    def name(self) -> str:
        """The name that `parse_name` reads back, without a needless `-cifar`."""
        ambiguous = self.family == "cifar" and self.depth in IMAGENET_BLOCKS
        return f"{self.kind}{self.depth}" + ("-cifar" if ambiguous else "")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks in each stage."""
        if self.family == "imagenet":
            return IMAGENET_BLOCKS[self.depth]
        return ((self.depth - 2) // 6,) * 3

    @property
    def default_shortcut(self) -> Shortcut:
        """A for the CIFAR family (sec. 4.2), B for the ImageNet family (sec. 4.1, torchvision)."""
        return "A" if self.family == "cifar" else "B"

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that `layers_of` returns of a network, in their order, without the head."""
        if self.kind == "googlenet":
            blocks = (f"inception{stage}" for stage in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"))
            return ("conv1", "conv2", "conv3", *blocks)
        if self.kind in BASELINES:
            return ("features", "classifier")
        return ("stem", *(f"layer{stage + 1}" for stage in range(len(self.blocks))))

    @property
    def head(self) -> str:
        """The name of the layer that `head_of` returns of a network."""
        return "classifier.6" if self.kind in ("alexnet", "vgg") else "fc"

    @property
    def has_batchnorm(self) -> bool:
        """Return whether there is BatchNorm in it: AlexNet and VGG are older."""
        return self.kind not in ("alexnet", "vgg")

    @property
    def smallest_image(self) -> int:
        """Pixels a side below which a stride-2 layer has nothing left to halve."""
        if self.kind in BASELINES:
            return BASELINES[self.kind][1]
        return 4 if self.family == "cifar" else 32


def parse_name(name: str) -> Architecture:
    """Parse a network's name: `resnet20`, `plain56`, `resnet50`, `resnet50-cifar`.

    `alexnet`, `vgg19` and `googlenet` are the baselines.
    Depths 18, 34, 50, 101 and 152 mean the ImageNet family, every other valid depth the CIFAR
    family; `-cifar` selects it where a depth is valid in both.

    Raises:
        UserError: The name or its depth is not valid; names valid ones nearby.
    """
    baselines = [(kind, depth) for kind, (depth, _) in BASELINES.items()]
    for kind, depth in baselines:
        if re.fullmatch(rf"{kind}-?({depth})?", name.strip().lower()):
            return Architecture(kind, depth, "imagenet")
    match = re.fullmatch(r"(resnet|plain)-?(\d{1,9})(-cifar)?", name.strip().lower())
    if match is None:
        known = [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (8, 20, 32, 44, 56, 110, 1202)]
        known += [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in IMAGENET_BLOCKS]
        known += [f"{kind}{depth}" for kind, depth in baselines]
        raise UserError(
            f"Unknown network {name!r}.",
            f"{did_you_mean(name.lower(), known)} Names are resnetN and plainN: N = 18, 34, 50, 101, 152 "
            "(ImageNet family) or 6n+2, such as 20, 56, 110 (CIFAR family); or alexnet, vgg19, googlenet.",
        )
    kind = "resnet" if match[1] == "resnet" else "plain"
    depth, says_cifar = int(match[2]), match[3] is not None
    if depth in IMAGENET_BLOCKS and not says_cifar:
        return Architecture(kind, depth, "imagenet")
    if depth % 6 != 2 or not 8 <= depth <= MAX_DEPTH:
        suffix = "-cifar" if says_cifar else ""
        near = ", ".join(f"{kind}{d}{suffix}" for d in _valid_depths_near(depth, cifar_only=says_cifar))
        raise UserError(
            f"{name} is not a valid depth: the CIFAR family has 6n+2 layers from 8 to {MAX_DEPTH:,}"
            + ("." if says_cifar else ", the ImageNet family 18, 34, 50, 101 or 152."),
            f"Valid nearby: {near}.",
        )
    return Architecture(kind, depth, "cifar")


def _valid_depths_near(depth: int, cifar_only: bool) -> list[int]:
    shallower = max(8, min(depth, MAX_DEPTH) // 6 * 6 + 2 - (6 if depth % 6 < 2 else 0))
    valid = {shallower, min(shallower + 6, MAX_DEPTH // 6 * 6 + 2)}
    if not cifar_only:
        valid.add(min(IMAGENET_BLOCKS, key=lambda d: abs(d - depth)))
    return sorted(d for d in valid if d <= MAX_DEPTH)


def check_image_size(architecture: Architecture, size: Sequence[int]) -> None:
    """Check that images (height, width) are large enough for the network's strides.

    Raises:
        UserError: A side is shorter than `Architecture.smallest_image`.
    """
    smallest = architecture.smallest_image
    if min(size) < smallest:
        remedy = f"Use --image-size {smallest}, or larger images."
        if architecture.family == "imagenet" and min(size) >= 4:
            remedy = f"Use --image-size {smallest} or more, or a network of the CIFAR family: {architecture.kind}20."
        raise UserError(
            f"{architecture.name} needs images of at least {smallest}x{smallest} pixels; these are "
            f"{size[0]}x{size[1]}.",
            remedy,
        )
