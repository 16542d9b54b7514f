"""Operations of automatic augmentation on batches, as those of torchvision.transforms.v2.functional on one uint8 image.

Which of them each image gets is drawn in auto_augment.py. All come down to four passes: a gather of pixels by an affine
map, look-up tables, and two blends, with a grey version and with a blurred one. Color jitter has one of its own.

On a GPU a pass is done to the whole batch, which leaves the images that it does not concern as they are, to the bit:
nothing waits for the device and no shape depends on what was drawn, so that CUDA can capture it in a graph. On a CPU it
is done to the images that it concerns alone. Shapes: N images, H height, W width, C channels (1 or 3).
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_ops.data.resize import map_on_threads

LEVELS = 256
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's
PART_VALUES = {"cpu": 2**19, "cuda": 2**26}  # of pixels that a pass is done to at a time, for caches and for memory


class Operation(IntEnum):
    """An operation on an image; its magnitude is a factor less 1 where nothing else is said."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # magnitude: the number of levels that become one
    SOLARIZE = 11  # magnitude: the level from which on all are inverted
    AUTO_CONTRAST = 12
    EQUALIZE = 13


Group = frozenset[Operation]
GEOMETRIC = frozenset(op for op in Operation if Operation.SHEAR_X <= op <= Operation.ROTATE)
BY_LEVEL = frozenset({Operation.BRIGHTNESS, Operation.POSTERIZE, Operation.SOLARIZE})
BY_MEAN = frozenset({Operation.CONTRAST})
BY_HISTOGRAM = frozenset({Operation.AUTO_CONTRAST, Operation.EQUALIZE})
BY_GREY = frozenset({Operation.COLOR})
BY_BLUR = frozenset({Operation.SHARPNESS})
# What one pass does: on a GPU as much as it can, on a CPU what the same statistics serve.
PASSES = {
    "cuda": (GEOMETRIC, BY_LEVEL | BY_MEAN | BY_HISTOGRAM, BY_GREY, BY_BLUR),
    "cpu": (GEOMETRIC, BY_LEVEL, BY_MEAN, BY_HISTOGRAM, BY_GREY, BY_BLUR),
}


def apply_operations(x: Tensor, operations: Tensor, magnitudes: Tensor, maps: Tensor) -> Tensor:
    """Do to each image the operations that were drawn for it, one after another.

    Args:
        x: (N, H, W, C) uint8.
        operations: (N, L) uint8, the values of `Operation`.
        magnitudes: (N, L) float32, see `Operation`.
        maps: (N, L, 2, 3) float32 for `transform`, of geometric operations.

    Returns:
        (N, H, W, C) uint8.
    """
    apply = _to_some if x.device.type == "cpu" else _to_all
    for drawn in zip(operations.unbind(1), magnitudes.unbind(1), maps.unbind(1), strict=True):
        x = apply(x, *drawn)
    return x


def _to_all(x: Tensor, operations: Tensor, magnitudes: Tensor, maps: Tensor) -> Tensor:
    """Do all passes to the whole batch, as many images at a time as memory allows."""
    done = torch.empty_like(x)
    for rows in _parts(x, PART_VALUES["cuda"]):
        part = x[rows]
        for group in PASSES["cuda"]:
            part = _apply(part, group, operations[rows], magnitudes[rows], maps[rows])
        done[rows] = part
    return done


def _to_some(x: Tensor, operations: Tensor, magnitudes: Tensor, maps: Tensor) -> Tensor:
    """Do each pass to the images that it concerns, on all of torch's threads."""
    done, chosen, jobs = x.clone(), operations.tolist(), []
    for group in PASSES["cpu"]:
        rows = [row for row, operation in enumerate(chosen) if operation in group]
        jobs += [(group, rows[part]) for part in _parts(x[: len(rows)], PART_VALUES["cpu"])]
    pixels = done.numpy()  # copies images 30 times as fast as index_copy_

    def run(job: tuple[Group, list[int]]) -> None:
        group, rows = job
        part = torch.from_numpy(pixels[rows])
        pixels[rows] = _apply(part, group, operations[rows], magnitudes[rows], maps[rows]).numpy()

    map_on_threads(run, jobs)
    return done


def _parts(x: Tensor, values: int) -> list[slice]:
    """Return ranges of images (N, ...) that have about `values` values together."""
    step = max(1, values // x.shape[1:].numel())
    return [slice(start, start + step) for start in range(0, len(x), step)]


def jitter(x: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of each image, in its own order.

    Args:
        x: (N, H, W, C) uint8.
        operations: (N, 3) uint8: `BRIGHTNESS`, `CONTRAST` and `COLOR` in any order.
        magnitudes: (N, 3) float32.

    Returns:
        (N, H, W, C) uint8.
    """
    done = torch.empty_like(x)

    def run(rows: slice) -> None:
        planes = x[rows].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        layers = zip(operations[rows].unbind(1), magnitudes[rows].unbind(1), strict=True)
        for operation, extra in ((each.view(-1, 1, 1), m.view(-1, 1, 1)) for each, m in layers):
            other = grey(planes.unbind(1))
            by_mean, by_grey = operation == Operation.CONTRAST, operation == Operation.COLOR
            if len(planes[0]) == 1:
                extra = extra.masked_fill(by_grey, 0)
            mean = other.mean((1, 2), keepdim=True)
            other = torch.where(by_grey, other, torch.where(by_mean, mean, 0.0)).mul_(extra)
            planes.mul_(1 + extra[:, None]).sub_(other[:, None]).clamp_(0, LEVELS - 1).floor_()
        done[rows] = planes.permute(0, 2, 3, 1)

    if x.device.type == "cpu":
        map_on_threads(run, _parts(x, PART_VALUES["cpu"]))
    else:
        for rows in _parts(x, PART_VALUES["cuda"]):
            run(rows)
    return done


def _apply(x: Tensor, group: Group, operations: Tensor, magnitudes: Tensor, maps: Tensor) -> Tensor:
    """Do to each image its operation, if that is one of a group that takes one pass."""
    if group == GEOMETRIC:
        return transform(x, maps)
    if group == BY_GREY:
        return saturate(x, _magnitudes_of(Operation.COLOR, operations, magnitudes))
    if group == BY_BLUR:
        return sharpen(x, _magnitudes_of(Operation.SHARPNESS, operations, magnitudes))
    return recolor(x, group, operations, magnitudes)


def _magnitudes_of(operation: Operation, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Return the magnitudes (N,) where that is the operation, elsewhere 0."""
    return torch.where(operations == operation, magnitudes, 0.0)


def transform(x: Tensor, maps: Tensor) -> Tensor:
    """Move pixels, each to the nearest place; what comes from outside of an image is black.

    Args:
        x: (N, H, W, C) uint8.
        maps: (N, 2, 3) float32: of a pixel's column and row, counted from the center of the image, those of the pixel
            that takes its place.
    """
    n, h, w, c = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))  # to which all places outside are moved
    columns = torch.arange(w, device=x.device) - (w - 1) / 2
    rows = torch.arange(h, device=x.device)[:, None] - (h - 1) / 2
    index = torch.arange(n, device=x.device, dtype=torch.int32).view(n, 1, 1) * ((h + 2) * (w + 2))
    for axis, length, stride in ((1, h, w + 2), (0, w, 1)):
        a, b, shift = maps[:, axis].view(n, 3, 1, 1).unbind(1)
        places = a * columns + (b * rows + (shift + (length - 1) / 2))
        index = index + places.round_().clamp_(-1, length).add_(1).to(torch.int32).mul_(stride)
    return padded.view(-1, c).index_select(0, index.flatten()).view(n, h, w, c)


def recolor(x: Tensor, group: Group, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Replace the levels of each channel by others.

    Args:
        x: (N, H, W, C) uint8.
        group: The operations that are done; images of others stay as they are.
        operations: (N,) uint8.
        magnitudes: (N,) float32.
    """
    n, h, w, c = x.shape
    channels = (torch.arange(w * c, dtype=torch.int32, device=x.device) % c) * LEVELS
    images = torch.arange(n, dtype=torch.int32, device=x.device).view(n, 1, 1) * (c * LEVELS)
    # Over whole rows of pixels, as in `Normalizer`.
    index = x.reshape(n, h, w * c).to(torch.int32).add_(channels + images).flatten()
    levels, m = torch.arange(LEVELS, dtype=torch.float32, device=x.device), magnitudes.view(n, 1, 1)
    tables = levels.expand(n, c, LEVELS)
    by_operation: dict[Operation, Tensor] = {}
    if Operation.BRIGHTNESS in group:
        by_operation[Operation.BRIGHTNESS] = _blend(levels, torch.zeros_like(m), m)
    if Operation.CONTRAST in group:
        mean = grey(_planes(x)).mean((1, 2)).view(n, 1, 1)
        by_operation[Operation.CONTRAST] = _blend(levels, mean, m)
    if Operation.POSTERIZE in group:
        by_operation[Operation.POSTERIZE] = levels - levels.remainder(m)
        by_operation[Operation.SOLARIZE] = torch.where(levels >= m, LEVELS - 1 - levels, levels)
    if Operation.EQUALIZE in group:
        counts = torch.zeros(n * c * LEVELS, dtype=torch.int32, device=x.device)
        counts = counts.index_add_(0, index, index.new_ones(1).expand(len(index))).view(n, c, LEVELS)
        by_operation[Operation.AUTO_CONTRAST] = _stretched(levels, counts)
        by_operation[Operation.EQUALIZE] = _equalized(levels, counts)
    for operation, own in by_operation.items():
        tables = torch.where((operations == operation).view(n, 1, 1), own, tables)
    return tables.flatten().to(torch.uint8).index_select(0, index).view(n, h, w, c)


def _blend(x: Tensor, other: Tensor, extra: Tensor) -> Tensor:
    """Return `x` (1 + extra) - `other` extra, within 0 to 255, float32."""
    return (x * (1 + extra)).sub_(other * extra).clamp_(0, LEVELS - 1)


def _stretched(levels: Tensor, counts: Tensor) -> Tensor:
    """Return tables (N, C, 256) that stretch the levels of each channel to 0 to 255."""
    present = (counts > 0).to(torch.uint8)
    lowest = present.argmax(2, keepdim=True).to(torch.float32)
    highest = LEVELS - 1 - present.flip(2).argmax(2, keepdim=True)
    step = (highest - lowest) * (1 / (LEVELS - 1))
    return torch.where(step > 0, ((levels - lowest) / step).clamp_(0, LEVELS - 1), levels)


def _equalized(levels: Tensor, counts: Tensor) -> Tensor:
    """Return tables (N, C, 256) that make all levels of each channel about equally frequent, as Pillow does."""
    below = counts.cumsum(2) - counts
    step = below.where(counts > 0, 0).amax(2, keepdim=True) // (LEVELS - 1)  # of all pixels but those of the last level
    table = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, table.clamp_(0, LEVELS - 1).to(torch.float32), levels)


def _planes(x: Tensor) -> tuple[Tensor, ...]:
    """Return the channels (N, H, W) of images (N, H, W, C), each by itself: every third byte is read more slowly."""
    return x.permute(0, 3, 1, 2).contiguous().unbind(1)


def grey(planes: Sequence[Tensor]) -> Tensor:
    """Return the grey version, rounded down, of the 1 or 3 channels (N, H, W) of images: (N, H, W) float32."""
    if len(planes) == 1:
        return planes[0].to(torch.float32)
    red, green, blue = (plane * weight for plane, weight in zip(planes, GREY_WEIGHTS, strict=True))
    return red.add_(green).add_(blue).floor_()


def saturate(x: Tensor, extra: Tensor) -> Tensor:
    """Blend images (N, H, W, C) uint8 with grey; `extra` (N,) is the factor less 1. Grey ones stay as they are."""
    if x.shape[3] == 1:
        return x
    planes, blended = _planes(x), torch.empty_like(x)
    other = grey(planes)
    for channel, plane in zip(blended.unbind(3), planes, strict=True):
        channel.copy_(_blend(plane, other, extra.view(-1, 1, 1)))
    return blended


def sharpen(x: Tensor, extra: Tensor) -> Tensor:
    """Blend pixels of images (N, H, W, C) uint8, but the outermost, with their neighbors; `extra` as in `saturate`."""
    n, h, w, c = x.shape
    if min(h, w) < 3:
        return x
    rows = x.reshape(n, h, w * c)
    inner = (slice(None), slice(1, -1), slice(c, -c))
    values = rows.to(torch.int16)
    sums = values[:, :, : -2 * c] + values[:, :, c:-c] + values[:, :, 2 * c :]
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
    center = values[inner]
    blurred = sums.add_(center, alpha=4).to(torch.float32).div_(13).round_()  # a kernel of ones around a 5
    sharpened = rows.clone()
    change = blurred.sub_(center).mul_(-extra.view(n, 1, 1))
    sharpened[inner] = change.add_(center).clamp_(0, LEVELS - 1).to(torch.uint8)
    return sharpened.view(n, h, w, c)
