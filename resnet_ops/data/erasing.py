"""Boxes of training images that are blanked: cutout and random erasing.

Shapes: N images, H height, W width, C channels.
"""

import math

import torch
from torch import Tensor

from resnet_ops.data.sampling import Draws

SCALE, RATIO = (0.02, 0.33), (0.3, 3.3)  # of random erasing: torchvision, where 1/3 of the paper is rounded
ATTEMPTS = 10
MAX_MASK_PIXELS = 40 * 40  # of an image, up to which one mask of a batch is faster than a box of each image


def draw_squares(n: int, size: tuple[int, int], side: int, generator: torch.Generator) -> Draws:
    """Draw squares for `cutout`, whose centers may be any pixel, so that part of one may lie outside.

    Returns:
        `squares` (N, 2) int64: top and left.
    """
    corners = [torch.randint(0, length, (n, 1), generator=generator) - side // 2 for length in size]
    return {"squares": torch.cat(corners, 1)}


def cutout(x: Tensor, squares: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0, in place (DeVries and Taylor 2017).

    Args:
        x: (N, C, H, W) float.
        squares: (N, 2) int64, see `draw_squares`.
        side: Pixels a side of the square.
    """
    return erase(x, torch.cat((squares, torch.full_like(squares, side)), 1))


def draw_erased(n: int, size: tuple[int, int], probability: float, generator: torch.Generator) -> Draws:
    """Draw a box of 2 to 33% of the area in some of the images, 0.3 to 3.3 times as high as wide (Zhong et al. 2017).

    As torchvision's RandomErasing draws it: of 10 boxes the first that is lower and narrower than the image, or none.

    Args:
        n: N.
        size: H and W.
        probability: That an image has one.
        generator: A CPU generator.

    Returns:
        `erased` (N, 4) int64: top, left, height and width, the latter 0 where there is none.
    """
    length = torch.tensor(size)
    chosen = torch.rand(n, generator=generator) < probability
    areas = torch.empty(n, ATTEMPTS, dtype=torch.float64).uniform_(*SCALE, generator=generator) * math.prod(size)
    ratios = torch.empty(n, ATTEMPTS, dtype=torch.float64).uniform_(*map(math.log, RATIO), generator=generator).exp()
    sides = torch.stack(((areas * ratios).sqrt(), (areas / ratios).sqrt()), 2).round()
    fits = (sides < length).all(2)
    first = fits.to(torch.uint8).argmax(1)
    sides = sides[torch.arange(n), first] * (chosen & fits.any(1))[:, None]
    corners = (torch.rand(n, 2, dtype=torch.float64, generator=generator) * (length - sides + 1)).floor()
    return {"erased": torch.cat((corners, sides), 1).long()}


def erase(x: Tensor, boxes: Tensor) -> Tensor:
    """Set a box of each image to 0, its mean once normalized, in place.

    Args:
        x: (N, C, H, W) float.
        boxes: (N, 4) int64: tops, lefts, heights and widths; parts of them may lie outside.
    """
    if x.device.type == "cpu" and x.shape[2:].numel() > MAX_MASK_PIXELS:
        for image, (top, left, height, width) in zip(x, boxes.tolist(), strict=True):
            image[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)].zero_()
        return x
    down, across = (in_range(x.shape[2 + axis], boxes[:, axis, None], boxes[:, axis + 2, None]) for axis in (0, 1))
    return x.masked_fill_(down[:, None, :, None] & across[:, None, None, :], 0)


def in_range(length: int, starts: Tensor, size: Tensor | int) -> Tensor:
    """Return which of `length` pixels are within ranges of `size` pixels, (N, length) of (N, 1)."""
    offsets = torch.arange(length, device=starts.device) - starts
    return (offsets >= 0) & (offsets < size)
