"""Mixing of the images of a batch and of their labels: mixup and CutMix.

Shapes: N images, H height, W width, C channels, K classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from resnet_ops.data.erasing import in_range
from resnet_ops.data.sampling import Draws


def draw_mixing(mixup: float, cutmix: float, size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draw how a batch is mixed: by mixup (Zhang et al. 2017) or CutMix (Yun et al. 2019), with both by either.

    As torchvision's MixUp and CutMix draw it.

    Args:
        mixup: Alpha of the distribution Beta(alpha, alpha) of the share of each image that is kept, or 0.
        cutmix: Alpha of that of the area that is kept, or 0.
        size: Height and width of the images.
        generator: A CPU generator.

    Returns:
        `pixel_share` and `label_share` () float32, what is kept of each pixel and of the labels, and with CutMix
        `pasted` (4,) int64, the box within which no pixel is kept: top, left, height and width.
    """
    if mixup and not (cutmix and torch.rand(1, generator=generator) < 0.5):
        shares, box = [_beta(mixup, generator)] * 2, [0] * 4
    else:
        h, w = size
        half = 0.5 * math.sqrt(1 - _beta(cutmix, generator))
        column, row = (int(torch.randint(length, (1,), generator=generator)) for length in (w, h))
        left, right = max(column - int(half * w), 0), min(column + int(half * w), w)
        top, bottom = max(row - int(half * h), 0), min(row + int(half * h), h)
        shares, box = [1.0, 1 - (right - left) * (bottom - top) / (w * h)], [top, left, bottom - top, right - left]
    draws = dict(zip(("pixel_share", "label_share"), torch.tensor(shares, dtype=torch.float32), strict=True))
    return draws | {"pasted": torch.tensor(box)} if cutmix else draws


def mix(x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it in the batch.

    Args:
        x: (N, C, H, W) float.
        y: (N, K) float: the share of each class.
        draws: See `draw_mixing`.
    """
    kept = draws["pixel_share"]
    if (box := draws.get("pasted")) is not None:
        down, across = (in_range(x.shape[2 + axis], box[axis].view(1, 1), box[axis + 2]) for axis in (0, 1))
        kept = kept.expand(x.shape[2:]).masked_fill(down.view(-1, 1) & across, 0)
    # With the weights 0 and 1 lerp returns either side to the bit.
    return _rolled(x).lerp_(x, kept), _rolled(y).lerp_(y, draws["label_share"])


def _rolled(rows: Tensor) -> Tensor:
    """Roll the rows of a batch by one, as torch.roll does, but keep the memory format."""
    return torch.cat((rows[-1:], rows[:-1]))


def _beta(alpha: float, generator: torch.Generator) -> float:
    # torch.distributions takes no generator.
    seed = int(torch.randint(2**63 - 1, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
