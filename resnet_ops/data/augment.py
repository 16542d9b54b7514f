"""Augment and normalize whole batches on the device, from uint8 pixels; batches are made in loader.py.

Shapes: N images, H height, W width, C channels, S side of a training image, K classes. Batches
come in as (N, H, W, C) and leave as (N, C, H, W) in channels_last memory, which on a CPU trains
1.25 times as fast as NCHW.

Random numbers are drawn on the CPU, so that the same generator gives the same images on every device, and apart from
the pixels: a batch's are a few small tensors of fixed shapes, which are drawn and sent for many batches at once. What
is done to the pixels follows from tensors on the device alone, so that CUDA can capture it in a graph.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_ops.data.resize import crop_and_resize
from resnet_ops.recipe_config import Recipe

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random resized crops: Szegedy et al. 2014, torchvision
ATTEMPTS = 10
Draws = Mapping[str, Tensor]  # the random numbers of a batch, by name
MAX_GATHER_PIXELS = 40 * 40  # of an image, up to which one gather of a batch is faster than a copy of each image


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images; the defaults do nothing.

    Args:
        crop_padding: Pixels added on each side before a random crop.
        flip: Whether to mirror half of the images.
        random_resized_crop: Crop a random part and resize it, instead of padding and cropping.
        cutout: Side in pixels of a square that is blanked.
        mixup: Alpha of mixup, or 0.
        cutmix: Alpha of CutMix, or 0; with mixup too, each batch gets one of them.
        classes: Number of classes, for labels that are mixed.
        side: Side of the augmented images; None for that of the images that come in.
    """

    crop_padding: int = 0
    flip: bool = False
    random_resized_crop: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0
    side: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, classes: int, side: int | None = None) -> "Augmentation":
        """Return the augmentation of a recipe whose padding and mirroring are decided."""
        return cls(
            crop_padding=recipe.crop_padding or 0,
            flip=bool(recipe.flip),
            random_resized_crop=recipe.random_resized_crop,
            cutout=recipe.cutout,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            classes=classes,
            side=side,
        )

    def draw(self, images: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw the random numbers of a batch.

        Args:
            images: N.
            size: H and W of the images that come in.
            generator: A CPU generator.

        Returns:
            CPU tensors, whose names and shapes depend on the augmentation and N alone.
        """
        draws: dict[str, Tensor] = {}
        if self.random_resized_crop:
            draws |= draw_boxes(images, self.flip, generator)
        elif self._crops(size):
            draws |= draw_crops(images, size, self.output_size(size), self.crop_padding, self.flip, generator)
        if self.cutout:
            draws |= draw_squares(images, self.output_size(size), self.cutout, generator)
        if self.mixup or self.cutmix:
            draws |= draw_mixing(self.mixup, self.cutmix, self.output_size(size), generator)
        return draws

    def __call__(
        self, x: Tensor, y: Tensor, draws: Draws, normalizer: "Normalizer", aspects: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment and normalize a batch.

        Args:
            x: (N, H, W, C) uint8.
            y: (N,) int64.
            draws: The batch's random numbers, on the same device.
            normalizer: That of the dataset.
            aspects: (N,) float32, width / height of images that were resized to another; None where none were.

        Returns:
            (N, C, S, S) float32, channels_last, and labels: (N,) int64, or (N, K) float32 where
            images are mixed.
        """
        came_in = (x.shape[1], x.shape[2])
        size = self.output_size(came_in)
        if self.random_resized_crop:
            x = random_resized_crop(x, draws, size, aspects)
        elif self._crops(came_in):
            x = crop_and_flip(x, draws["corners"], draws["mirrored"], self.crop_padding, size)
        x = normalizer(x)
        if self.cutout:
            x = cutout(x, draws["squares"], self.cutout)
        if self.mixup or self.cutmix:
            shares = (y[:, None] == torch.arange(self.classes, device=y.device)).to(x.dtype)
            return mix(x, shares, draws)
        return x, y

    def _crops(self, size: tuple[int, int]) -> bool:
        return bool(self.crop_padding or self.flip or self.side not in (None, size[0]))

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the augmented images, of those that come in."""
        return size if self.side is None else (self.side, self.side)


def draw_crops(
    n: int, size: tuple[int, int], crop: tuple[int, int], padding: int, flip: bool, generator: torch.Generator
) -> Draws:
    """Draw the corners of random crops, and which of them are mirrored.

    Args:
        n: N.
        size: H and W.
        crop: Height and width of the crops, at most those of the images and their padding.
        padding: Pixels added on each side.
        flip: Whether to mirror half of the images.
        generator: A CPU generator.

    Returns:
        `corners` (N, 2) int64, top and left in the padded images, and `mirrored` (N,) bool.
    """
    tops = torch.randint(0, size[0] - crop[0] + 2 * padding + 1, (n, 1), generator=generator)
    lefts = torch.randint(0, size[1] - crop[1] + 2 * padding + 1, (n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < (0.5 if flip else 0.0)
    return {"corners": torch.cat((tops, lefts), 1), "mirrored": mirrored[:, 0]}


def crop_and_flip(x: Tensor, corners: Tensor, mirrored: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
    """Pad with black, crop, mirror some (He et al. 2015, sec. 4.2).

    Args:
        x: (N, H, W, C) uint8.
        corners: (N, 2) int64, see `draw_crops`.
        mirrored: (N,) bool.
        padding: Pixels added on each side.
        size: Height and width of the crops.

    Returns:
        (N, *size, C) uint8.
    """
    n, h, w, c = x.shape
    high, wide = size
    padded = F.pad(x, (0, 0, padding, padding, padding, padding))
    if x.device.type == "cpu" and high * wide > MAX_GATHER_PIXELS:
        crops = (
            image[top : top + high, left : left + wide]
            for image, (top, left) in zip(padded, corners.tolist(), strict=True)
        )
        return torch.stack(
            [crop.flip(1) if mirror else crop for crop, mirror in zip(crops, mirrored.tolist(), strict=True)]
        )
    rows, columns = torch.arange(high, device=x.device), torch.arange(wide, device=x.device)
    rows = rows + corners[:, :1]
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + corners[:, 1:]
    stride = w + 2 * padding
    first = torch.arange(n, device=x.device)[:, None, None] * ((h + 2 * padding) * stride)
    # One gather of whole pixels: 3 times as fast as indexing rows and columns, 94,000 images/s a core at 32x32.
    pixels = (first + rows[:, :, None] * stride + columns[:, None, :]).flatten()
    return padded.view(-1, c).index_select(0, pixels).view(n, high, wide, c)


def draw_boxes(n: int, flip: bool, generator: torch.Generator) -> Draws:
    """Draw what decides random boxes, whatever the size of the images, and which of them are mirrored.

    Returns:
        `shares` of the area and aspect `ratios` (N, 10), `places`, the top and left as shares of what the box leaves
        (N, 2), all float64, and `mirrored` (N,) bool.
    """
    shares = torch.empty(n, ATTEMPTS, dtype=torch.float64).uniform_(*SCALE, generator=generator)
    ratios = torch.empty(n, ATTEMPTS, dtype=torch.float64).uniform_(*map(math.log, RATIO), generator=generator).exp()
    places = torch.rand(2, n, dtype=torch.float64, generator=generator).T
    mirrored = torch.rand(n, generator=generator) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    return {"shares": shares, "ratios": ratios, "places": places, "mirrored": mirrored}


def random_resized_crop(x: Tensor, draws: Draws, size: tuple[int, int], aspects: Tensor | None = None) -> Tensor:
    """Crop 8 to 100% of each image, 3:4 to 4:3, resize it, mirror some (Szegedy et al. 2014).

    Args:
        x: (N, H, W, C) uint8.
        draws: See `draw_boxes`.
        size: Height and width of the images returned.
        aspects: (N,) float32, width / height of images that were resized to another; None where none were.

    Returns:
        (N, *size, C) uint8.
    """
    boxes = fit_boxes(draws, x.shape[1], x.shape[2], aspects)
    return crop_and_resize(x, boxes, draws["mirrored"], size)


def fit_boxes(draws: Draws, h: int, w: int, aspects: Tensor | None = None) -> Tensor:
    """Return the first of the boxes drawn that fits into each image, as torchvision does.

    Where images were resized to another aspect ratio, the boxes are of the ratios drawn before that: what is cut out is
    what would be cut out of the image as it was, but for rounding to a pixel. Nothing waits for the device.

    Args:
        draws: See `draw_boxes`.
        h: Height of the images.
        w: Width of the images.
        aspects: (N,) float32, width / height of the images before they were resized; None where that is w / h.

    Returns:
        (N, 4) int32: tops, lefts, heights and widths.
    """
    shares, ratios, places = draws["shares"], draws["ratios"], draws["places"]
    squeezed = torch.ones_like(places[:, 0]) if aspects is None else aspects.to(torch.float64) / (w / h)
    area, ratio = shares * (h * w), ratios / squeezed[:, None]
    wide, high = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide > 0) & (wide <= w) & (high > 0) & (high <= h)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    none = ~fits.any(1)
    # Where none fits, the largest box at the center whose ratio is allowed.
    heights = torch.where(none, (w * squeezed / RATIO[0]).round().clamp(1, h), high.gather(1, first)[:, 0])
    widths = torch.where(none, (h * RATIO[1] / squeezed).round().clamp(1, w), wide.gather(1, first)[:, 0])
    tops = torch.where(none, (h - heights) // 2, (places[:, 0] * (h - heights + 1)).floor())
    lefts = torch.where(none, (w - widths) // 2, (places[:, 1] * (w - widths + 1)).floor())
    return torch.stack((tops, lefts, heights, widths), 1).to(torch.int32)


def draw_squares(n: int, size: tuple[int, int], side: int, generator: torch.Generator) -> Draws:
    """Draw squares for `cutout`, whose centers may be any pixel, so that part of one may lie outside.

    Returns:
        `squares` (N, 2) int64: top and left.
    """
    corners = [torch.randint(0, length, (n, 1), generator=generator) - side // 2 for length in size]
    return {"squares": torch.cat(corners, 1)}


def cutout(x: Tensor, squares: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0, its mean once normalized, in place (DeVries and Taylor 2017).

    Args:
        x: (N, C, H, W) float.
        squares: (N, 2) int64, see `draw_squares`.
        side: Pixels a side of the square.
    """
    down, across = (_in_range(x.shape[2 + axis], squares[:, axis : axis + 1], side) for axis in (0, 1))
    return x.masked_fill_(down[:, None, :, None] & across[:, None, None, :], 0)


def _in_range(length: int, starts: Tensor, size: Tensor | int) -> Tensor:
    """Return which of `length` pixels are within ranges of `size` pixels, (N, length) of (N, 1)."""
    offsets = torch.arange(length, device=starts.device) - starts
    return (offsets >= 0) & (offsets < size)


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
        down, across = (_in_range(x.shape[2 + axis], box[axis].view(1, 1), box[axis + 2]) for axis in (0, 1))
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


class Normalizer:
    """Maps pixels to `(x / 255 - mean) / std`; its constants are sent to the device once.

    Args:
        mean: Per channel, of pixels from 0 to 1.
        std: Per channel, of the same scale.
        device: That of the pixels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        constants = torch.tensor([mean, std], dtype=torch.float32) * 255
        self.shift, self.scale = constants.to(device)
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize images.

        Args:
            x: (N, H, W, C) uint8, or float32, which is changed in place.

        Returns:
            (N, C, H, W) float32, channels_last.
        """
        n, h, w, c = x.shape
        if w not in self._rows:
            # Over whole rows of pixels: over the 1 or 3 channels alone it is 4 times as slow on a CPU.
            self._rows[w] = (self.shift.repeat(w), self.scale.repeat(w))
        shift, scale = self._rows[w]
        rows = x.reshape(n, h, w * c).to(torch.float32).sub_(shift).div_(scale)
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalize images (N, H, W, C) as a `Normalizer` of these constants does."""
    return Normalizer(mean, std, x.device)(x)


def pixel_statistics(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, on the scale 0 to 1; exact.

    A constant channel has deviation 1, so that normalizing it gives zeros.

    Args:
        counts: How often each value occurs in each channel, (C, 256).
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in torch.from_numpy(counts).to(torch.float64):
        mean = (channel @ values / channel.sum()).item()
        deviation = (channel @ (values - mean).square() / channel.sum()).sqrt().item()
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)
