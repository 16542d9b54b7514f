"""Decode one image to pixels of the size and the color mode that are asked for, and read its header.

Decoding whole splits, and what happens to images that cannot be decoded, is in parallel_decode.py.
"""

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_ops.data.image_kinds import describe_content

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112
DRAFT_MARGIN = 2.5  # times the size needed: that of a JPEG decoded at a reduced scale, at least; see `_decode_jpeg`
END_OF_JPEG, NOISE = b"\xff\xd9", bytes(range(1, 97))
CUT_PIXELS = 0.01  # share of the pixels of a JPEG without its end that may be lost
WHITE_OF_16_BITS = 2**16 - 1
ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # keys of Image.info that may hold it

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of each odd image; what matters is raised


class DecodeError(ValueError):
    """An image cannot be decoded; the message is the reason in a few words."""


class TooManyPixelsError(DecodeError):
    """An image has more pixels, or its header says so, than Pillow decodes (a decompression bomb)."""


@dataclass(frozen=True)
class CropSpec:
    """Size and channels of decoded images, and how they are resized and cropped to it.

    An image of another size than `cover` (height, width) is resized to the smallest size that covers it, and cropped to
    it at the center; then `height` x `width` are cropped at the center of that. With `whole`, nothing is cropped: all
    of the image is resized to `cover`, which then is `height` x `width`, whatever its aspect ratio is. `bit_depth` is
    how many bits the values of 16-bit images use: the largest of so many bits is white.
    """

    cover: tuple[int, int]
    height: int
    width: int
    channels: int
    whole: bool = False
    bit_depth: int = 16

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one decoded image."""
        return self.height, self.width, self.channels

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (width, height) that an upright image of a size is resized to."""
        cover = self.cover[1], self.cover[0]
        return cover if self.whole else covering_size(size, cover)


@dataclass(frozen=True)
class ImageHeader:
    """An image's size once upright, whether it is grey, and its format and mode as Pillow names them."""

    height: int
    width: int
    grey: bool
    format: str
    mode: str

    @property
    def wide(self) -> bool:
        """Return whether a pixel has 16 bits; of colors Pillow reads the upper 8 only."""
        return _is_wide(self.mode)


def read_header(encoded: bytes | OSError) -> ImageHeader:
    """Read an image's header.

    Raises:
        DecodeError: It is of no format that Pillow knows.
    """
    try:
        image = _open(encoded)
        return _header(image, _oriented(image, image.size))
    except Exception as error:  # broken files make Pillow raise almost anything
        raise _decode_error(error, encoded) from None


def _header(image: Image.Image, size: tuple[int, int]) -> ImageHeader:
    return ImageHeader(size[1], size[0], image.mode in GREY_MODES, image.format or "?", image.mode)


def decode(encoded: bytes | OSError, crop: CropSpec) -> np.ndarray:
    """Decode one image to pixels (H, W, C) uint8: see `decode_with_aspect`."""
    return decode_with_aspect(encoded, crop)[0]


def decode_with_aspect(encoded: bytes | OSError, crop: CropSpec) -> tuple[np.ndarray, float]:
    """Decode one image to pixels (H, W, C) uint8 and its own width / height: see `decode_image`."""
    decoded = decode_image(encoded, crop)
    return decoded.pixels, decoded.aspect


@dataclass(frozen=True)
class DecodedImage:
    """Pixels (H, W, C) uint8, width / height of the image, its header, and whether it is a JPEG that lacks its end."""

    pixels: np.ndarray
    aspect: float
    header: ImageHeader
    is_cut: bool = False


def decode_image(encoded: bytes | OSError, crop: CropSpec) -> DecodedImage:
    """Decode one image to pixels of a size and color mode, resized and cropped as `crop` says.

    The EXIF orientation is applied; of an animation the first frame is taken; 16-bit grey is scaled to 8 bits, by
    `crop.bit_depth`; transparency is dropped. Resizing is bilinear, antialiased, as torchvision's Resize; of JPEGs that
    are much larger than needed it is so to within what `_decode_jpeg` says. A JPEG without its end is read where next
    to all pixels are there.

    Raises:
        DecodeError: It is broken, is no image, or has more than 179 million pixels.
    """
    try:
        return DecodedImage(*_decode(encoded, crop))
    except Exception as error:  # broken files make Pillow raise almost anything
        if not isinstance(encoded, OSError) and (ended := _with_end(encoded)):
            return DecodedImage(*_decode(ended, crop), is_cut=True)
        raise _decode_error(error, encoded) from None


def _decode(encoded: bytes | OSError, crop: CropSpec) -> tuple[np.ndarray, float, ImageHeader]:
    image, mode = _open(encoded), "L" if crop.channels == 1 else "RGB"
    if image.format != "JPEG":
        image.load()  # a PNG may hold its orientation at the very end
    size = width, height = _oriented(image, image.size)
    header = _header(image, size)
    resized = crop.resized(size)
    if image.format == "JPEG":
        image = _decode_jpeg(image, mode, _oriented(image, resized))
    image = _convert(_apply_orientation(image), mode, crop.bit_depth)
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    image = _center_crop(_center_crop(image, crop.cover[::-1]), (crop.width, crop.height))
    return np.asarray(image).reshape(crop.shape), width / height, header


def _with_end(encoded: bytes) -> bytes | None:
    """Return a JPEG that ends before its end mark with one; None where more than `CUT_PIXELS` of its pixels are lost.

    What is lost shows as it is decoded twice, with noise in its place and without.
    """
    if not encoded.startswith(b"\xff\xd8"):
        return None
    rest = encoded.rstrip(b"\xff")
    noise = NOISE * (1 + len(rest) // len(NOISE))  # enough for all that may be lost
    try:
        pixels = [np.asarray(_open(rest + more + END_OF_JPEG).convert("RGB")) for more in (b"", noise)]
    except Exception:
        return None
    lost = (pixels[0] != pixels[1]).any(-1)
    return rest + END_OF_JPEG if lost.mean() <= CUT_PIXELS else None


def wide_values(encoded: bytes | OSError) -> np.ndarray | None:
    """Return the values (H, W) int64 of a 16-bit image, 0 to 65535; None where it has not 16 bits or is broken."""
    try:
        image = _open(encoded)
        return _wide_values(image) if _is_wide(image.mode) else None
    except Exception:  # broken images are reported where they are decoded
        return None


def largest_value(encoded: bytes | OSError) -> int:
    """Return the largest value in a 16-bit image, 0 to 65535; 0 where it has not 16 bits or is broken."""
    values = wide_values(encoded)
    return 0 if values is None else int(values.max())


def decode_whole(encoded: bytes | OSError, channels: int, bit_depth: int = 16) -> np.ndarray:
    """Decode an image at its own size, upright: (H, W, C) uint8. JPEGs at full scale, as other programs do.

    Raises:
        DecodeError: It cannot be decoded.
    """
    header = read_header(encoded)
    size = header.height, header.width
    return decode(encoded, CropSpec(size, *size, channels, bit_depth=bit_depth))


def _decode_jpeg(image: Image.Image, mode: str, size: tuple[int, int]) -> Image.Image:
    """Decode a JPEG: one much larger than needed at a half, a quarter or an eighth of its scale, resized to `size`.

    libjpeg then decodes fewer frequencies of each block, which is 3.6 times as fast for 4000x3000 pixels at 256, and
    not quite what an antialiased resize does: in 16 photos and textures, encoded in four ways, levels differed by 0.4
    on average at a half of the scale, 0.6 at an eighth, 0.8 in the worst image; 1% by more than 3, the most by 19. With
    a margin of 2 they would by up to 1.0 on average, with 1 by 3.5.

    Args:
        image: A JPEG that is opened but not decoded.
        mode: The color mode of an image that is resized here.
        size: Width and height to resize to, as the JPEG is stored, not upright.
    """
    least = math.ceil(DRAFT_MARGIN * size[0]), math.ceil(DRAFT_MARGIN * size[1])
    drafted = image.draft(None, least)
    if drafted is None or drafted[1][2:] == image.size:
        image.load()
        return image
    # The box, in fractions of pixels: blocks at the right and at the bottom reach beyond the image.
    return image.convert(mode).resize(size, Image.Resampling.BILINEAR, box=drafted[1])


def _open(encoded: bytes | OSError) -> Image.Image:
    if isinstance(encoded, OSError):
        raise encoded
    if not encoded:
        raise DecodeError("it is empty")
    return Image.open(io.BytesIO(encoded))


def _decode_error(error: Exception, encoded: bytes | OSError) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, UnidentifiedImageError):
        content = None if isinstance(encoded, OSError) else describe_content(encoded)
        return DecodeError("it is not an image" + (f", but {content}" if content else ""))
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    kind = TooManyPixelsError if isinstance(error, Image.DecompressionBombError) else DecodeError
    return kind(reason[:200].rstrip(".") or type(error).__name__)


def _has_orientation(image: Image.Image) -> bool:
    # Asking Pillow for the EXIF of a small PNG takes as long as decoding it. It rotates TIFFs by itself.
    return image.format != "TIFF" and not ORIENTED.isdisjoint(image.info)


def _is_rotated(image: Image.Image) -> bool:
    """Return whether width and height are exchanged when the image is put upright."""
    return _has_orientation(image) and image.getexif().get(ORIENTATION, 1) >= 5


def _oriented(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height, exchanged if the image is rotated: from stored to upright, or from upright to stored."""
    return (size[1], size[0]) if _is_rotated(image) else size


def _apply_orientation(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _has_orientation(image) else image


def _is_wide(mode: str) -> bool:
    return mode.startswith("I")


def _wide_values(image: Image.Image) -> np.ndarray:
    """Return the values of an image of 16 bits, which Pillow may open as one of 32."""
    return np.asarray(image).astype(np.int64).clip(0, WHITE_OF_16_BITS)


def _convert(image: Image.Image, mode: str, bit_depth: int) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("it has floating-point pixels of unknown range")
    if _is_wide(image.mode):  # 16 bits a pixel, which Pillow would clip to white
        low, high = (int(value) for value in image.getextrema())  # type: ignore[arg-type]  # of one band
        if low < 0 or high > WHITE_OF_16_BITS:
            raise DecodeError(f"its values, {low} to {high}, are not of 16 bits: convert it to 8 or 16")
        white = 2**bit_depth - 1
        image = Image.fromarray(((_wide_values(image).clip(max=white) * 255 + white // 2) // white).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # or Pillow warns
    return image if image.mode == mode else image.convert(mode)


def covering_size(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of the same aspect ratio that covers `cover`; its longer side is rounded down."""
    return max(cover[0], size[0] * cover[1] // size[1]), max(cover[1], size[1] * cover[0] // size[0])


def _center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop at the center, rounded as torchvision's CenterCrop does."""
    if image.size == size:
        return image
    left, top = round((image.width - size[0]) / 2), round((image.height - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))
