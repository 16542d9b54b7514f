"""Reference outputs, with which those of exported files are compared: our own preprocessing, then torch in float64.

The comparison itself is in `checks` and `proof`.
"""

import hashlib
from collections import OrderedDict

import numpy as np
import torch

from resnet_ops.training.checkpoint import Checkpoint

# At a time. On a CPU torch unfolds a whole batch in memory: batches that stay in the caches are twice as fast.
CHUNK_PIXELS = {"cpu": 16 * 32 * 32, "cuda": 64 * 224 * 224}
CACHE_BYTES = 64 * 2**20


class Reference:
    """The network of a checkpoint in torch, with a cache of its latest outputs."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.info = checkpoint.info
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.info.build_network()
        network.load_state_dict(checkpoint.model)
        self.network = network.double().eval().to(self.device)
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return logits (N, classes) float64 of pixels (N, H, W, C) uint8; larger images are center-cropped."""
        chunk = max(2, CHUNK_PIXELS[self.device.type] // (self.info.height * self.info.width))
        parts = [self._logits(pixels[start : start + chunk]) for start in range(0, len(pixels), chunk)]
        return np.concatenate(parts)

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        key = hashlib.sha1(pixels.tobytes() + str(pixels.shape).encode(), usedforsecurity=False).digest()
        if (cached := self._cache.get(key)) is not None:
            return cached
        height, width = self.info.height, self.info.width
        top, left = round((pixels.shape[1] - height) / 2), round((pixels.shape[2] - width) / 2)
        cropped = np.ascontiguousarray(pixels[:, top : top + height, left : left + width])
        x = torch.from_numpy(cropped).to(self.device).double()
        mean, std = (torch.tensor(v, dtype=torch.float64, device=self.device) for v in (self.info.mean, self.info.std))
        with torch.inference_mode():
            logits: np.ndarray = self.network(((x / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()).cpu().numpy()
        self._cache[key] = logits
        while sum(part.nbytes for part in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return logits
