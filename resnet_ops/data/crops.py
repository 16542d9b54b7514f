"""Crops of training images: padded and cropped, or random resized crops, and mirrored.

What is drawn, and what is done with it to whole batches; resizing is in resize.py. Shapes: N images, H height, W width,
C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_ops.data.resize import crop_and_resize
from resnet_ops.data.sampling import Draws

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random resized crops: Szegedy et al. 2014, torchvision
ATTEMPTS = 10
MAX_GATHER_PIXELS = 40 * 40  # of an image, up to which one gather of a batch is faster than a copy of each image


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
