"""Read every image once, and collect facts of its bytes, its header and its pixels.

What is wrong with them is concluded in findings.py.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_ops.data.dataset import EncodedImages, digest
from resnet_ops.data.decode import CropSpec, DecodeError, ImageHeader, decode_image, largest_value, read_header
from resnet_ops.data.near_duplicates import SIDE, perceptual_hashes, shrink
from resnet_ops.data.parallel_decode import map_chunks


@dataclass(frozen=True)
class Survey:
    """Facts of N images; of one that cannot be decoded, sizes and sums are 0 and it is not grey.

    Args:
        digests: (N,) of 32 bytes, the SHA-256 of each image as it is stored.
        bytes: (N,) int64, the length of each image as it is stored.
        sizes: (N, 2) int64, height and width when upright.
        grey: (N,) bool.
        largest_values: (N,) int64, of 16-bit images; 0 for others.
        blank: (N,) bool, whether all of its pixels are the same.
        sums: (N, 2, C) float64: for each channel the sum of the decoded pixels, from 0 to 255, and of their squares.
        hashes: (N, 4) uint64, the perceptual hash of each image; 0 of those too small or of too little contrast.
        formats: How many images are of each format, as Pillow names it.
        modes: How many images are of each of Pillow's modes, such as RGB or L.
        cut: (N,) bool, whether it is a JPEG that lacks its end, but next to no pixels.
        broken: For each row that cannot be decoded, the reason.
        examples: The pixels (H, W, C) uint8 of the rows to keep, without broken ones.
    """

    digests: np.ndarray
    bytes: np.ndarray
    sizes: np.ndarray
    grey: np.ndarray
    largest_values: np.ndarray
    blank: np.ndarray
    sums: np.ndarray
    hashes: np.ndarray
    formats: Counter[str]
    modes: Counter[str]
    cut: np.ndarray
    broken: dict[int, str]
    examples: dict[int, np.ndarray]

    @property
    def decodable(self) -> np.ndarray:
        """The images that can be decoded, (N,) bool."""
        decodable = np.ones(len(self.digests), bool)
        decodable[list(self.broken)] = False
        return decodable


@dataclass(frozen=True)
class _ImageFacts:
    digest: bytes
    bytes: int
    reason: str = ""
    header: ImageHeader | None = None
    largest_value: int = 0
    blank: bool = False
    cut: bool = False
    sums: np.ndarray | None = None
    shrunk: np.ndarray | None = None
    pixels: np.ndarray | None = None


def survey(
    parts: Sequence[EncodedImages], crop: CropSpec, keep: Collection[int], on_progress: Callable[[int], object]
) -> Survey:
    """Read and decode all images, with as many threads as there are cores.

    Args:
        parts: The images; rows count through all of them.
        crop: How they are decoded.
        keep: Rows whose pixels become `Survey.examples`.
        on_progress: Called now and then with the number of images read so far.
    """
    first, no_sums = 0, np.zeros((2, crop.channels))
    # In chunks of arrays: a million objects would take more memory than many a dataset.
    digests, lengths, sizes, grey, largest, blank, cut, sums, hashes = (list[np.ndarray]() for _ in range(9))
    formats, modes = Counter[str](), Counter[str]()
    broken: dict[int, str] = {}
    examples: dict[int, np.ndarray] = {}
    for part in parts:

        def examine_chunk(
            rows: range, part: EncodedImages = part, first: int = first
        ) -> tuple[list[_ImageFacts], np.ndarray]:
            images = part.read(rows)
            facts = [_examine(image, crop, first + row in keep) for row, image in zip(rows, images, strict=True)]
            shrunk = [np.zeros((SIDE, SIDE), np.uint8) if each.shrunk is None else each.shrunk for each in facts]
            return facts, perceptual_hashes(np.stack(shrunk))

        for chunk, chunk_hashes in map_chunks(len(part.labels), examine_chunk):
            for row, image in enumerate(chunk, first):
                if image.header is None:
                    broken[row] = image.reason
                    continue
                formats[image.header.format] += 1
                modes[image.header.mode] += 1
                if image.pixels is not None:
                    examples[row] = image.pixels
            headers = [image.header for image in chunk]
            digests.append(np.array([image.digest for image in chunk], "S32"))
            lengths.append(np.array([image.bytes for image in chunk], np.int64))
            sizes.append(np.array([(h.height, h.width) if h else (0, 0) for h in headers], np.int64))
            grey.append(np.array([h is not None and h.grey for h in headers]))
            largest.append(np.array([image.largest_value for image in chunk], np.int64))
            blank.append(np.array([image.blank for image in chunk]))
            cut.append(np.array([image.cut for image in chunk]))
            hashes.append(chunk_hashes)
            sums.append(np.array([no_sums if image.sums is None else image.sums for image in chunk]))
            first += len(chunk)
            on_progress(first)
    return Survey(
        digests=np.concatenate(digests),
        bytes=np.concatenate(lengths),
        sizes=np.concatenate(sizes),
        grey=np.concatenate(grey),
        largest_values=np.concatenate(largest),
        blank=np.concatenate(blank),
        sums=np.concatenate(sums),
        hashes=np.concatenate(hashes),
        formats=formats,
        modes=modes,
        cut=np.concatenate(cut),
        broken=broken,
        examples=examples,
    )


def _examine(image: bytes | OSError, crop: CropSpec, keep: bool) -> _ImageFacts:
    image_digest, length = digest(image), 0 if isinstance(image, OSError) else len(image)
    try:
        header, decoded = read_header(image), decode_image(image, crop)
    except DecodeError as error:
        return _ImageFacts(image_digest, length, reason=str(error))
    pixels = decoded.pixels
    # In float64 the sums are exact; with channels one after the other they take 5 us at 32x32, not 21.
    flat = pixels.reshape(-1, crop.channels).T.astype(np.float64, order="C")
    sums = np.array([flat.sum(1), np.einsum("cp,cp->c", flat, flat)])
    blank = bool((sums[1] * flat.shape[1] == sums[0] ** 2).all())
    return _ImageFacts(
        image_digest,
        length,
        header=header,
        largest_value=largest_value(image) if header.wide else 0,
        blank=blank,
        cut=decoded.is_cut,
        sums=sums,
        shrunk=shrink(pixels) if min(header.height, header.width) >= SIDE else None,
        pixels=pixels if keep else None,
    )
