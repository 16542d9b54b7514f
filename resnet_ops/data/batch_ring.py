"""Batches in host memory that is allocated once, and their way to the device while it computes.

Knows nothing of where pixels come from.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Images as they are stored.

    Args:
        pixels: (n, H, W, C) uint8.
        labels: (n,) int64.
        aspects: (n,) float32, width / height of each image before it was resized; None where no aspect ratio changed.
    """

    pixels: Tensor
    labels: Tensor
    aspects: Tensor | None = None


class BatchRing:
    """A ring of batches: batch b is in slot b modulo their number; slots are filled in any order, and sent in theirs.

    For a GPU the memory is pinned, and batches are sent on a stream of its own: beside the step that computes, not
    after it. No other thread than the one that sends uses CUDA, so that steps may be captured meanwhile.

    Args:
        slots: Number of slots.
        batch_size: Images in a batch, at most.
        image_shape: Of one image, (H, W, C).
        device: The device that batches are sent to.
    """

    def __init__(self, slots: int, batch_size: int, image_shape: tuple[int, ...], device: torch.device) -> None:
        self.device, self.slots = device, slots
        on_gpu = device.type == "cuda"
        self._pixels = torch.empty((slots, batch_size, *image_shape), dtype=torch.uint8, pin_memory=on_gpu)
        self._labels = torch.empty((slots, batch_size), dtype=torch.int64, pin_memory=on_gpu)
        self._aspects = torch.empty((slots, batch_size), dtype=torch.float32, pin_memory=on_gpu)
        # The same memory.
        self._arrays = self._pixels.numpy(), self._labels.numpy(), self._aspects.numpy()
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._uses: deque[torch.cuda.Event] = deque()
        self._released = 0  # batches

    def can_fill(self, batch: int) -> bool:
        """Return whether the slot of a batch is free of earlier ones."""
        return batch < self._released + self.slots

    def slot(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the memory of a batch, to be filled: pixels (n, H, W, C) uint8, labels (n,) int64, aspects (n,)."""
        pixels, labels, aspects = (array[batch % self.slots] for array in self._arrays)
        return pixels, labels, aspects

    def send(self, batch: int, size: int) -> Batch:
        """Return the first `size` images of a batch on the device, for use on its current stream."""
        slot = batch % self.slots
        parts = [part[slot, :size] for part in (self._pixels, self._labels, self._aspects)]
        if self._stream is None:
            return Batch(*(part.clone() for part in parts))
        # Allocated on the stream that writes: memory of the other one might be in use there until later.
        with torch.cuda.stream(self._stream):
            sent = [part.to(self.device, non_blocking=True) for part in parts]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for part in sent:
            part.record_stream(current)
        return Batch(*sent)

    def release(self) -> None:
        """Free slots, once the caller has begun all work on the batch sent last: on a GPU, of all batches before it.

        Waits until the GPU is done with those. So it is never more than two steps behind, or the batches sent to it
        would fill its memory.
        """
        if self._stream is None:
            self._released += 1
            return
        use = torch.cuda.Event(blocking=True)  # spinning would take a core from those that decode
        use.record(torch.cuda.current_stream(self.device))
        self._uses.append(use)
        if len(self._uses) > 1:
            self._uses.popleft().synchronize()
            self._released += 1
