"""Decode one image to pixels of the size and the color mode that are asked for, and read its header.

Decoding whole splits, and what happens to images that cannot be decoded, is in parallel_decode.py.
"""

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112
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
    of the image is resized to `cover`, which then is `height` x `width`, whatever its aspect ratio is.
    """

    cover: tuple[int, int]
    height: int
    width: int
    channels: int
    whole: bool = field(default=False, repr=False)  # the names of cached images are made of the rest's representation

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one decoded image."""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class ImageHeader:
    """An image's size once upright, whether it is grey, and its format and mode as Pillow names them."""

    height: int
    width: int
    grey: bool
    format: str
    mode: str


def read_header(encoded: bytes | OSError) -> ImageHeader:
    """Read an image's header.

    Raises:
        DecodeError: It is of no format that Pillow knows.
    """
    try:
        image = _open(encoded)
        size = image.size[::-1] if _is_rotated(image) else image.size
        return ImageHeader(size[1], size[0], image.mode in GREY_MODES, image.format or "?", image.mode)
    except Exception as error:  # broken files make Pillow raise almost anything
        raise _decode_error(error) from None


def decode(encoded: bytes | OSError, crop: CropSpec) -> np.ndarray:
    """Decode one image to pixels (H, W, C) uint8: see `decode_with_aspect`."""
    return decode_with_aspect(encoded, crop)[0]


def decode_with_aspect(encoded: bytes | OSError, crop: CropSpec) -> tuple[np.ndarray, float]:
    """Decode one image to pixels (H, W, C) uint8, resized and cropped as `crop` says, and its own width / height.

    JPEGs are decoded at the smallest of their built-in scales that suffices; the EXIF orientation is applied; of an
    animation the first frame is taken; 16-bit grey is scaled to 8 bits; transparency is dropped. Resizing is bilinear,
    antialiased, as torchvision's Resize.

    Raises:
        DecodeError: It is broken, is no image, or has more than 179 million pixels.
    """
    try:
        image = _open(encoded)
        mode, cover = "L" if crop.channels == 1 else "RGB", (crop.cover[1], crop.cover[0])
        if image.format == "JPEG" and image.size != cover:
            target = cover[::-1] if _is_rotated(image) else cover
            image.draft(mode, _covering_size(image.size, target))
        image = _convert(_apply_orientation(image), mode)
        aspect = image.width / image.height
        if image.size != cover:
            size = cover if crop.whole else _covering_size(image.size, cover)
            image = _center_crop(image.resize(size, Image.Resampling.BILINEAR), cover)
        return np.asarray(_center_crop(image, (crop.width, crop.height))).reshape(crop.shape), aspect
    except Exception as error:  # broken files make Pillow raise almost anything
        raise _decode_error(error) from None


def _open(encoded: bytes | OSError) -> Image.Image:
    if isinstance(encoded, OSError):
        raise encoded
    if not encoded:
        raise DecodeError("it is empty")
    return Image.open(io.BytesIO(encoded))


def _decode_error(error: Exception) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return DecodeError("it is not an image")
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    kind = TooManyPixelsError if isinstance(error, Image.DecompressionBombError) else DecodeError
    return kind(reason[:200].rstrip(".") or type(error).__name__)


def _has_orientation(image: Image.Image) -> bool:
    # Asking Pillow for the EXIF of a small PNG takes as long as decoding it. It rotates TIFFs by itself.
    return image.format != "TIFF" and not ORIENTED.isdisjoint(image.info)


def _is_rotated(image: Image.Image) -> bool:
    """Return whether width and height are exchanged when the image is put upright."""
    return _has_orientation(image) and image.getexif().get(ORIENTATION, 1) >= 5


def _apply_orientation(image: Image.Image) -> Image.Image:
    image.load()  # a PNG may hold its orientation at the very end
    return ImageOps.exif_transpose(image) if _has_orientation(image) else image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("it has floating-point pixels of unknown range")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # or Pillow warns
    return image if image.mode == mode else image.convert(mode)


def _covering_size(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of the same aspect ratio that covers `cover`; its longer side is rounded down."""
    return max(cover[0], size[0] * cover[1] // size[1]), max(cover[1], size[1] * cover[0] // size[0])


def _center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop at the center, rounded as torchvision's CenterCrop does."""
    if image.size == size:
        return image
    left, top = round((image.width - size[0]) / 2), round((image.height - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))
