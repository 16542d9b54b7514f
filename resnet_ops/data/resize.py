"""Cut a box out of each image of a batch and resize it: bilinear with antialiasing, within a level of Pillow's.

Which boxes are cut is drawn in crops.py. Shapes: N images, H height, W width, C channels, S new height, R new width.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

J = TypeVar("J")

MIN_IMAGES = 4  # that are handed to a thread: less than a millisecond of work at 224x224

Resize = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


def crop_and_resize(x: Tensor, boxes: Tensor, mirrored: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each image, resize it, and mirror some, as torchvision does by default.

    On a GPU nothing waits for the device and no shape depends on the boxes, so that it can be captured in a CUDA graph.

    Args:
        x: (N, H, W, C) uint8.
        boxes: (N, 4) integers, the top, left, height and width of each box; on the device of `x`.
        mirrored: (N,) bool, on the device of `x`.
        size: S and R.

    Returns:
        (N, S, R, C) uint8.
    """
    return (resize_each if x.device.type == "cpu" else resize_all)(x, boxes, mirrored, size)


def resize_each(x: Tensor, boxes: Tensor, mirrored: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize image by image on all of torch's threads: see `crop_and_resize`.

    Torch's kernel for one uint8 image is fixed-point and vectorized: 20 times as fast as the products of `resize_all`.
    """
    resized = torch.empty((len(x), *size, x.shape[3]), dtype=torch.uint8)
    images, out = x.permute(0, 3, 1, 2), resized.permute(0, 3, 1, 2)  # channels_last, which the kernel reads and writes
    draws = list(zip(boxes.tolist(), mirrored.tolist(), strict=True))

    def resize_range(rows: range) -> None:
        for row in rows:
            (top, left, height, width), mirror = draws[row]
            box = images[row : row + 1, :, top : top + height, left : left + width]
            part = F.interpolate(box, size, mode="bilinear", antialias=True)
            out[row].copy_((part.flip(3) if mirror else part)[0])

    count = torch.get_num_threads()
    step = max(MIN_IMAGES, -(-len(x) // count))
    ranges = [range(start, min(start + step, len(x))) for start in range(0, len(x), step)]
    map_on_threads(resize_range, ranges)
    return resized


def map_on_threads(function: Callable[[J], None], jobs: Sequence[J]) -> None:
    """Do some jobs of a CPU, on as many threads as torch uses, in each of which torch uses one."""
    count = torch.get_num_threads()
    if min(count, len(jobs)) > 1:
        list(_threads(count).map(function, jobs))
    else:
        for job in jobs:
            function(job)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Start threads in which torch uses one thread: by default each of them would start `count` more."""
    all_started = threading.Barrier(count)

    def use_one_thread() -> None:
        torch.get_num_threads()  # or the thread's first operation would set its number to that of the process
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(count, "resize", initializer=use_one_thread)
    for started in [pool.submit(int) for _ in range(count)]:
        started.result()
    torch.set_num_threads(count)  # the threads have set that of the process, too
    return pool


def resize_all(x: Tensor, boxes: Tensor, mirrored: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the whole batch by two matrix products: see `crop_and_resize`.

    They are exact enough in TF32 too: pixels are exact in its 11 bits, and each product rounds by at most 1/8 level.
    """
    n, h, w, c = x.shape
    top, left, height, width = boxes.to(torch.float32).unbind(1)
    down = resize_weights(top, height, h, size[0], torch.zeros_like(mirrored))
    across = resize_weights(left, width, w, size[1], mirrored)
    rows = down.bmm(x.to(torch.float32).view(n, h, w * c)).view(n, size[0], w, c)
    pixels = torch.einsum("nrw,nswc->nsrc", across, rows)
    # Halves are rounded up, as Pillow does. Copied, as a plain cast would keep the order in memory that einsum chose.
    return torch.empty((n, *size, c), dtype=torch.uint8, device=x.device).copy_(pixels.add_(0.5))


def resize_weights(starts: Tensor, lengths: Tensor, size: int, side: int, mirrored: Tensor) -> Tensor:
    """Return weights (N, S, size) that resize a range of each row of pixels to S: the triangle filter of Pillow.

    Args:
        starts: (N,) float32, the first pixel of each range.
        lengths: (N,) float32, the number of its pixels.
        size: Pixels in a row.
        side: S.
        mirrored: (N,) bool, whether the new pixels are in reverse order.
    """
    scale = (lengths / side)[:, None]
    support = scale.clamp(min=1)[:, :, None]  # when downsizing, each new pixel is the mean of several
    order = torch.arange(side, device=starts.device)
    centers = (torch.where(mirrored[:, None], side - 1 - order, order) + 0.5) * scale
    pixels = torch.arange(size, device=starts.device) - starts[:, None]
    pixels = pixels.masked_fill((pixels < 0) | (pixels >= lengths[:, None]), torch.inf)
    weights = (pixels[:, None, :] + 0.5 - centers[:, :, None]).abs_().div_(support).neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))
