"""One encoded image in, pixels out. Whatever Pillow reads is brought to one size and one kind of colour."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112
ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow keeps word of a rotation

warnings.filterwarnings("ignore", module=r"PIL\.")  # a line for each odd image; what matters is raised


class DecodeError(ValueError):
    """Why an image cannot be decoded, in a few words."""


class TooManyPixelsError(DecodeError):
    """It has so many pixels, or says so, that Pillow takes it for an attack."""


@dataclass(frozen=True)
class CropSpec:
    """What decoded images look like: (height, width, channels).

    An image of another size than `cover` (height, width) is resized, as little as makes it cover that, and cut to it
    from the centre; then `height` x `width` are cut from its centre.
    """

    cover: tuple[int, int]
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one decoded image."""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says: its size when upright, whether it is grey, its format and mode in Pillow's words."""

    height: int
    width: int
    grey: bool
    format: str
    mode: str


def read_header(encoded: bytes | OSError) -> ImageHeader:
    """Read an image's header.

    Raises:
        DecodeError: It has none that Pillow knows.
    """
    try:
        image = _open(encoded)
        size = image.size[::-1] if _is_turned(image) else image.size
        return ImageHeader(size[1], size[0], image.mode in GREY_MODES, image.format or "?", image.mode)
    except Exception as error:  # broken files make Pillow raise almost anything
        raise _explain(error) from None


def decode(encoded: bytes | OSError, frame: CropSpec) -> np.ndarray:
    """Pixels (H, W, C) uint8 of one image, as `frame` wants them.

    JPEGs are decoded at the smallest of their built-in scales that suffices; EXIF's rotation is carried out; of an
    animation it is the first picture; 16-bit grey is scaled to 8 bits; transparency is dropped. Resizing is antialiased
    bilinear, as torchvision's Resize.

    Raises:
        DecodeError: It is broken, is no image, or has more than 179 million pixels.
    """
    try:
        image = _open(encoded)
        mode, cover = "L" if frame.channels == 1 else "RGB", (frame.cover[1], frame.cover[0])
        if image.format == "JPEG" and image.size != cover:
            wanted = cover[::-1] if _is_turned(image) else cover
            image.draft(mode, _covering(image.size, wanted))
        image = _colours(_upright(image), mode)
        if image.size != cover:
            image = _cut(image.resize(_covering(image.size, cover), Image.Resampling.BILINEAR), cover)
        return np.asarray(_cut(image, (frame.width, frame.height))).reshape(frame.shape)
    except Exception as error:  # broken files make Pillow raise almost anything
        raise _explain(error) from None


def _open(encoded: bytes | OSError) -> Image.Image:
    if isinstance(encoded, OSError):
        raise encoded
    if not encoded:
        raise DecodeError("it is empty")
    return Image.open(io.BytesIO(encoded))


def _explain(error: Exception) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return DecodeError("it is not an image")
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    kind = TooManyPixelsError if isinstance(error, Image.DecompressionBombError) else DecodeError
    return kind(reason[:200].rstrip(".") or type(error).__name__)


def _says_orientation(image: Image.Image) -> bool:
    # Asking Pillow for the EXIF of a small PNG takes as long as decoding it. TIFFs it turns by itself.
    return image.format != "TIFF" and not ORIENTED.isdisjoint(image.info)


def _is_turned(image: Image.Image) -> bool:
    """Whether width and height change places when it is put upright."""
    return _says_orientation(image) and image.getexif().get(ORIENTATION, 1) >= 5


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a PNG may say how it is turned at its very end
    return ImageOps.exif_transpose(image) if _says_orientation(image) else image


def _colours(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("it has floating-point pixels of unknown range")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # or Pillow warns
    return image if image.mode == mode else image.convert(mode)


def _covering(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the same proportions that covers `cover`; its longer side is truncated, as torchvision's."""
    scale = max(cover[0] / size[0], cover[1] / size[1])
    return max(cover[0], int(size[0] * scale)), max(cover[1], int(size[1] * scale))


def _cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """From the centre, rounded as torchvision's CenterCrop does."""
    if image.size == size:
        return image
    left, top = round((image.width - size[0]) / 2), round((image.height - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))
