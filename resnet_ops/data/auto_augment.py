"""Which operations each image gets: drawn as torchvision's TrivialAugmentWide, RandAugment and ColorJitter draw them.

What they do to an image is in image_operations.py.
"""

import functools

import torch
from torch import Tensor

from resnet_ops.data.image_operations import GEOMETRIC, Operation
from resnet_ops.data.sampling import Draws

BINS = 31  # magnitudes of each operation
FACTORS = frozenset({Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS})
SIGNED = torch.tensor([operation in GEOMETRIC | FACTORS for operation in Operation])
JITTERED = torch.tensor([Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR], dtype=torch.uint8)


def draw_trivial_augment(n: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draw one operation for each image, and its magnitude (Müller and Hutter 2021, 'Wide').

    Args:
        n: N.
        size: H and W.
        generator: A CPU generator.

    Returns:
        `operations` (N, 1) uint8, `magnitudes` (N, 1) float32 and `maps` (N, 1, 2, 3) float32.
    """
    table = _magnitudes(shear=0.99, shift=(32.0, 32.0), angle=135.0, factor=0.99, bits=6)
    operations = torch.randint(len(Operation), (n, 1), generator=generator)
    return _described(operations, torch.randint(BINS, (n, 1), generator=generator), table, size, generator)


def draw_rand_augment(n: int, size: tuple[int, int], layers: int, magnitude: int, generator: torch.Generator) -> Draws:
    """Draw some operations for each image, all of one magnitude (Cubuk et al. 2019).

    Args:
        n: N.
        size: H and W.
        layers: L, operations one after another.
        magnitude: From 0 to 30.
        generator: A CPU generator.

    Returns:
        `operations` (N, L) uint8, `magnitudes` (N, L) float32 and `maps` (N, L, 2, 3) float32.
    """
    shift = 150 / 331 * size[0], 150 / 331 * size[1]
    table = _magnitudes(shear=0.3, shift=shift, angle=30.0, factor=0.9, bits=4)
    operations = torch.randint(len(Operation), (n, layers), generator=generator)
    return _described(operations, torch.full_like(operations, magnitude), table, size, generator)


def draw_color_jitter(n: int, strength: float, generator: torch.Generator) -> Draws:
    """Draw factors of brightness, contrast and saturation, and the order in which an image gets the three.

    Returns:
        `jitter_order` (N, 3) uint8, values of `Operation`, and `jitter` (N, 3) float32, their magnitudes.
    """
    order = torch.rand(n, len(JITTERED), generator=generator).argsort(1)
    least = max(0.0, 1 - strength) - 1
    magnitudes = torch.empty(n, len(JITTERED)).uniform_(least, strength, generator=generator)
    return {"jitter_order": JITTERED[order], "jitter": magnitudes}


@functools.cache
def _magnitudes(*, shear: float, shift: tuple[float, float], angle: float, factor: float, bits: int) -> Tensor:
    """Return the magnitudes of each operation (operations, BINS) float32, as `Operation` has them, without signs.

    Args:
        shear: The most that rows and columns are sheared.
        shift: The most that images are moved down and across, in pixels.
        angle: The most that they are rotated, in degrees.
        factor: The most that a factor differs from 1.
        bits: The most bits that posterizing drops.
    """
    table = torch.zeros(len(Operation), BINS)
    largest = dict.fromkeys(FACTORS, factor)
    largest |= {Operation.SHEAR_X: shear, Operation.SHEAR_Y: shear, Operation.ROTATE: angle}
    largest |= {Operation.TRANSLATE_Y: shift[0], Operation.TRANSLATE_X: shift[1]}
    for operation, end in largest.items():
        table[operation] = torch.linspace(0.0, end, BINS)
    table[Operation.POSTERIZE] = (torch.arange(BINS) / ((BINS - 1) / bits)).neg().add(8).round().neg().add(8).exp2()
    table[Operation.SOLARIZE] = (torch.linspace(1.0, 0.0, BINS).double() * 255).float()
    return table


def _described(
    operations: Tensor, bins: Tensor, table: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Draws:
    """Return what `apply_operations` takes, with half of the magnitudes that have a sign negative."""
    negative = SIGNED[operations] & (torch.rand(operations.shape, generator=generator) <= 0.5)
    magnitudes = table[operations, bins]
    magnitudes = torch.where(negative, -magnitudes, magnitudes)
    return {
        "operations": operations.to(torch.uint8),
        "magnitudes": magnitudes,
        "maps": affine_maps(operations, magnitudes, size),
    }


def affine_maps(operations: Tensor, magnitudes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the maps of `image_operations.transform` for images (H, W): identities for what is not geometric.

    Args:
        operations: (N, L) int64.
        magnitudes: (N, L) float32: of shears about the top left corner, pixels, degrees counterclockwise.
        size: H and W.

    Returns:
        (N, L, 2, 3) float32.
    """
    h, w = size
    shear_x, shear_y, right, down, turn = (
        torch.where(operations == operation, magnitudes.double(), 0.0) for operation in sorted(GEOMETRIC)
    )
    sine, cosine = turn.deg2rad().sin(), turn.deg2rad().cos()
    across = torch.stack((cosine, shear_x - sine, shear_x * (h / 2) - right.trunc()), -1)
    along = torch.stack((shear_y + sine, cosine, shear_y * (w / 2) - down.trunc()), -1)
    return torch.stack((across, along), -2).float()
