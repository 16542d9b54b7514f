"""Find images that look like images of another split, though their bytes differ: re-encoded, resized, mirrored copies.

Each image has a perceptual hash: the signs of the 16x16 lowest frequencies of its 32x32 grey pixels (their discrete
cosine transform, as pHash has it; Zauner 2010). Alike images differ in few of these 256 bits.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from resnet_ops.data.parallel_decode import map_chunks

SIDE, FREQUENCIES = 32, 16
# Of CIFAR-10's 10,000 test images 219 have a training image within 56 bits: all of the 90 farthest of these pairs look
# like near duplicates, but for five of much alike airplanes and horses. Of every tenth test image 41 have a near
# duplicate, by eye: 30 of them within 56 bits, 34 within 66, which the first pair has that is none.
MAX_BITS = 56
MAX_LOW_BITS = 14  # of the 64 lowest frequencies, which are compared first: all those pairs differ in at most 12
MIN_CONTRAST = 4.0  # standard deviation of the 32x32 pixels, from 0 to 255, below which the signs are noise
BLOCK = 4096  # hashes that are compared with a chunk of others at a time: 2 MiB
# The rows of the discrete cosine transform (DCT-II) that are used, but for their scale.
COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(FREQUENCIES), np.arange(SIDE) + 0.5)).astype(np.float32)
MIRRORED, INDEX = 1 << 40, (1 << 40) - 1  # bits of a key below the distance


@dataclass(frozen=True)
class NearestImages:
    """Of N images the most alike one of others.

    Args:
        matched: (N,) bool, whether there is one within `MAX_BITS`.
        index: (N,) int64, its number among the others.
        distance: (N,) int64, the bits that differ.
        mirrored: (N,) bool, whether it is alike once mirrored.
    """

    matched: np.ndarray
    index: np.ndarray
    distance: np.ndarray
    mirrored: np.ndarray


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Return the grey pixels (32, 32) uint8 of an image (H, W, C) uint8, to be hashed."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Return the hashes (n, 4) uint64 of shrunk images (n, 32, 32) uint8, the 8x8 lowest frequencies in the first one.

    Those of images with hardly any contrast are 0, which no other hash is.
    """
    values = pixels.astype(np.float32)
    signs = COSINES @ values @ COSINES.T > 0
    signs[:, 0, 0] = True
    signs &= (values.std((1, 2)) >= MIN_CONTRAST)[:, None, None]
    return _pack(signs)


def _pack(signs: np.ndarray) -> np.ndarray:
    """Pack (n, 16, 16) bool into (n, 4) uint64, a quarter (8, 8) each."""
    quarters = signs.reshape(-1, 2, 8, 2, 8).swapaxes(2, 3).reshape(-1, 4 * 64)
    return np.packbits(quarters, axis=1).view(np.uint64)


# Mirroring an image negates its odd horizontal frequencies.
MIRROR = _pack(np.broadcast_to(np.arange(FREQUENCIES) % 2 == 1, (1, FREQUENCIES, FREQUENCIES)))


def find_nearest(images: np.ndarray, others: np.ndarray) -> NearestImages:
    """Find for each of some hashes (N, 4) uint64 the nearest of others (M, 4) uint64, upright or mirrored.

    All pairs are compared, a block at a time; hashes of 0 are left out.
    """

    def search(rows: range) -> np.ndarray:
        best = np.full(len(rows), np.iinfo(np.int64).max)
        for mirrored, flip in ((0, np.zeros_like(MIRROR)), (MIRRORED, MIRROR)):
            own = images[rows.start : rows.stop] ^ flip
            for start in range(0, len(others), BLOCK):
                block = others[start : start + BLOCK]
                i, j = np.nonzero(np.bitwise_count(own[:, None, 0] ^ block[:, 0]) <= MAX_LOW_BITS)
                distance = np.bitwise_count(own[i] ^ block[j]).sum(1, dtype=np.int64)
                key = distance * (2 * MIRRORED) + mirrored + start + j
                near = (distance <= MAX_BITS) & block[j].any(1)
                np.minimum.at(best, i[near], key[near])
        best[~images[rows.start : rows.stop].any(1)] = np.iinfo(np.int64).max
        return best

    best = np.concatenate([np.empty(0, np.int64), *map_chunks(len(images), search)])
    return NearestImages(
        best < np.iinfo(np.int64).max, best & INDEX, best // (2 * MIRRORED), (best & MIRRORED).astype(bool)
    )
