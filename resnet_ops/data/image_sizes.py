"""What a few images say of all of a dataset: their size, their channels, and how many bits their values use."""

from collections.abc import Iterator, Sequence

import numpy as np

from resnet_ops.config_base import image_size_text, parse_image_size
from resnet_ops.data.dataset import EncodedImages, image_count
from resnet_ops.data.decode import DecodeError, ImageHeader, read_header, wide_values
from resnet_ops.data.parallel_decode import map_chunks
from resnet_ops.errors import UserError
from resnet_ops.run_records import DataRecord

HEADERS_READ = 64  # images whose headers decide the size and the channels of all
WIDE_IMAGES_READ = 256  # 16-bit images whose values decide how many bits all of them use: 10 s at 4000x3000
BIT_DEPTHS = range(8, 17)
BRIGHTER_PIXELS = 0.001  # of all pixels of 16-bit images: hot pixels, which are clipped to white
MAX_NATIVE_SIDE = 64  # images of one size are not resized up to this side
IMAGE_SIZE = "224"
STORED_SCALE = 256 / 224  # side of what training crops from to that of the crop (Krizhevsky et al. 2012)


def read_headers(encoded: EncodedImages) -> list[ImageHeader]:
    """Read the headers of a few images.

    Raises:
        UserError: None of the sampled images can be decoded.
    """
    rows = _spread_rows(encoded, HEADERS_READ).tolist()
    headers: list[ImageHeader] = []
    first_error = ""
    for row, image in zip(rows, encoded.read(rows), strict=True):
        try:
            headers.append(read_header(image))
        except DecodeError as error:
            first_error = first_error or f"{encoded.name(row)}: {error}"
    if not headers:
        raise UserError(
            f"None of {image_count(len(rows))} sampled can be decoded. First: {first_error}.",
            "Check that these files are images.",
        )
    return headers


def network_size(
    headers: Sequence[ImageHeader], image_size: str | None, resize: str | None = None
) -> tuple[int, int, int, tuple[int, int] | None]:
    """Return height, width and channels for the network, and the size of stored images if they are resized.

    Raises:
        UserError: They would be resized to less than is cropped, or to a size that cannot be cropped exactly.
    """
    channels = 1 if all(header.grey for header in headers) else 3
    sizes = {(header.height, header.width) for header in headers}
    own_size = next(iter(sizes)) if len(sizes) == 1 else None
    if own_size and max(own_size) <= MAX_NATIVE_SIDE and image_size is None:
        return *own_size, channels, None
    size = parse_image_size(image_size or IMAGE_SIZE)
    stored = stored_size(size, resize)
    return *size, channels, None if size in (own_size, stored) else stored


def stored_size(
    size: tuple[int, int], resize: str | None = None, crop_share: float = 1 / STORED_SCALE
) -> tuple[int, int]:
    """Return the size that images are resized to, so that they cover it, for crops of `size`: 256x256 for 224x224.

    Sides are larger by a multiple of 4: only then a center crop of the center crop that is stored is the one that
    torchvision's CenterCrop takes from the whole image, as both round half a pixel to even.

    Args:
        size: Height and width of the crops.
        resize: The size to resize to, where it is given.
        crop_share: About the share of each side that is cropped, where it is not.

    Raises:
        UserError: `resize` is smaller than the crops, or larger by something else.
    """
    if resize is None:
        height, width = (_stored_side(side, crop_share) for side in size)
        return height, width
    resized = parse_image_size(resize)
    pairs = list(zip(size, resized, strict=True))
    if any(larger < side or (larger - side) % 4 for side, larger in pairs):
        height, width = (max(side, _stored_side(side, side / larger)) for side, larger in pairs)
        raise UserError(
            f"--resize {resize} must be the image size, {image_size_text(size)}, or larger by a multiple of 4.",
            f"Use --resize {image_size_text((height, width))}.",
        )
    return resized


def _stored_side(side: int, crop_share: float) -> int:
    return side + 4 * round(side * (1 / crop_share - 1) / 4)


def find_bit_depth(encoded: EncodedImages) -> int:
    """Return how many bits, 8 to 16, the values of 16-bit images use: cameras have 10, 12 or 14.

    One number for all of them, as stretching each image would take away how bright it is. `BRIGHTER_PIXELS` may exceed
    it: one hot pixel would leave 17 levels of 12 bits.
    """
    rows = _spread_rows(encoded, WIDE_IMAGES_READ)

    def count_of_chunk(chunk: range) -> np.ndarray:
        images = encoded.read([int(rows[position]) for position in chunk])
        return np.asarray(np.stack([_count_brighter(image) for image in images]).sum(0))

    pixels, *brighter = np.sum(list(map_chunks(len(rows), count_of_chunk)), axis=0).tolist()
    return next(bits for bits, count in zip(BIT_DEPTHS, brighter, strict=True) if count <= BRIGHTER_PIXELS * pixels)


def _count_brighter(encoded: bytes | OSError) -> np.ndarray:
    """Count the pixels of a 16-bit image, and those that exceed each of `BIT_DEPTHS`; zeros for other images."""
    values = wide_values(encoded)
    if values is None:
        return np.zeros(1 + len(BIT_DEPTHS), np.int64)
    return np.array([values.size, *(np.count_nonzero(values >= 2**bits) for bits in BIT_DEPTHS)])


def bit_depth_notes(record: DataRecord) -> Iterator[str]:
    """Yield how the values of 16-bit images are stretched, where fewer bits are used."""
    if record.bit_depth is not None and record.bit_depth < 16:
        yield (
            f"{1 - BRIGHTER_PIXELS:.1%} of the pixels in 16-bit images of {record.name} use {record.bit_depth} bits: "
            f"0 to {2**record.bit_depth - 1:,} become 0 to 255, and brighter ones white."
        )


def unlike_notes(record: DataRecord, wide: int, colored: int, resized: int) -> Iterator[str]:
    """Yield how images are read that are unlike the few whose headers decided how all are.

    Args:
        record: What was decided.
        wide: How many images have 16 bits.
        colored: How many are not grey.
        resized: How many are of another size, where that of the few is used.
    """
    unlike = f"unlike the {HEADERS_READ} of {record.name} that were sampled"
    if wide and record.bit_depth is None:
        yield f"{image_count(wide)} of 16 bits, {unlike}: dark if they use fewer bits. Convert them to 8 bits."
    if colored and record.channels == 1:
        yield f"{image_count(colored)} in color, {unlike}: converted to grey."
    if resized and record.stored is None:
        size = f"{record.height}x{record.width}"
        yield f"{image_count(resized)} of another size, {unlike}: resized and cropped to {size}."


def _spread_rows(encoded: EncodedImages, most: int) -> np.ndarray:
    """Return up to `most` rows, evenly spread."""
    count = len(encoded.labels)
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
