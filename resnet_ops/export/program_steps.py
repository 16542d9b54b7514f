"""The steps of a program that uses an exported file, from encoded images to the network: right ones and others.

Which of the other ways people take, and what to change then, is in `faults`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from resnet_ops.data.decode import covering_size, decode_whole
from resnet_ops.export.metadata import ModelMetadata, Preprocessing

Stage = Literal["read", "resize", "color", "normalize", "layout", "output"]
Resample = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
Kind = Literal["classes", "probabilities", "logits"]  # of answers
GREY_114, BLACK = 114, 0  # of letterboxes: YOLO's, and most others'


@dataclass(frozen=True)
class Fault:
    """A step of a program that is done otherwise than the file's metadata says.

    Args:
        name: What the program does.
        stage: The step.
        function: Does that step as the program does; its arguments are those of the step's function in `STEPS`.
        remedy: What to change in the program.
        combines: Whether it is tried together with others.
        geometry: What a resize does to the shape, as part of the name.
        filter_name: The filter of a resize, if it is another one, as part of the name.
    """

    name: str
    stage: Stage
    function: Callable[..., np.ndarray]
    remedy: str
    combines: bool = True
    geometry: str = ""
    filter_name: str = ""


def keep(x: np.ndarray, _: Preprocessing | None = None) -> np.ndarray:
    """Leave the pixels as they are."""
    return x


def standardize(pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Normalize pixels (N, H, W, C) uint8 as the metadata says."""
    return affine(pixels, steps.scale, steps.mean, steps.std)


def channels_first(x: np.ndarray) -> np.ndarray:
    """Make (N, C, H, W) of (N, H, W, C)."""
    return x.transpose(0, 3, 1, 2)


def right_steps(metadata: ModelMetadata) -> dict[Stage, Callable[..., np.ndarray]]:
    """Return the function of each step that is as the metadata says, but those of the output, which are to be left out.

    `read` maps encoded bytes and a number of channels to (H, W, C) uint8; `resize` that and the preprocessing to the
    input's size; `color` (N, H, W, C) uint8 to the same; `normalize` that and the preprocessing to the input's type;
    `layout` that to the input.
    """
    raw = metadata.input == "raw"
    return {
        "read": decode_whole,
        "resize": keep if raw else partial(cover, pillow(Image.Resampling.BILINEAR)),
        "color": keep,
        "normalize": keep if raw else standardize,
        "layout": keep if raw else channels_first,
    }


def affine(pixels: np.ndarray, scale: float, mean: object, std: object) -> np.ndarray:
    """Return (pixels * scale - mean) / std in float32."""
    scaled = pixels.astype(np.float32) * np.float32(scale)
    return np.asarray((scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32), np.float32)


# The resize


def pillow(resampling: Image.Resampling) -> Resample:
    """Return a resize of Pillow, which all but nearest neighbor antialiases."""

    def resample(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(image.resize((size[1], size[0]), resampling)).reshape(*size, pixels.shape[2])

    return resample


def interpolate(mode: str) -> Resample:
    """Return the resize of OpenCV, and of torch without antialiasing: few of the pixels are read."""

    def resample(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        x = torch.from_numpy(np.array(pixels, np.float32)).permute(2, 0, 1)[None]
        x = F.interpolate(x, size, mode=mode, align_corners=None if mode == "nearest" else False)
        return np.asarray(x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())

    return resample


def average_area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize so that each new pixel is the mean of the area that it covers, as OpenCV's INTER_AREA."""
    down, across = (_overlaps(old, new) for old, new in zip(pixels.shape[:2], size, strict=True))
    return np.asarray(np.round(np.einsum("sh,hwc,rw->src", down, pixels, across, optimize=True)).astype(np.uint8))


def _overlaps(size: int, side: int) -> np.ndarray:
    edges, pixels = np.arange(side + 1)[:, None] * (size / side), np.arange(size)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.asarray(shared.clip(0) * (side / size))


BILINEAR = "bilinear with antialiasing, as Image.resize(size, Image.Resampling.BILINEAR)"
FILTERS: tuple[tuple[str, Resample], ...] = (
    ("", pillow(Image.Resampling.BILINEAR)),  # the right one
    ("bilinear without antialiasing (cv2.resize)", interpolate("bilinear")),
    ("nearest neighbor (cv2.INTER_NEAREST)", interpolate("nearest")),
    ("nearest neighbor (Pillow)", pillow(Image.Resampling.NEAREST)),
    ("bicubic (Pillow)", pillow(Image.Resampling.BICUBIC)),
    ("bicubic without antialiasing (cv2.INTER_CUBIC)", interpolate("bicubic")),
    ("area (cv2.INTER_AREA)", average_area),
    ("Lanczos (Pillow)", pillow(Image.Resampling.LANCZOS)),
)


def _resized(resample: Resample, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return pixels if pixels.shape[:2] == size else resample(pixels, size)


def _crop(pixels: np.ndarray, size: tuple[int, int], centered: bool = True) -> np.ndarray:
    """Cut out a part; what is missing is black."""
    missing = [max(0, new - old) for old, new in zip(pixels.shape[:2], size, strict=True)]
    if any(missing):
        pixels = np.pad(pixels, [*((m // 2, m - m // 2) for m in missing), (0, 0)])
    top, left = (round((old - new) / 2) if centered else 0 for old, new in zip(pixels.shape[:2], size, strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def cover(resample: Resample, pixels: np.ndarray, steps: Preprocessing, centered: bool = True) -> np.ndarray:
    """Resize to cover `steps.resize`, and cut out the center: what the metadata says, with Pillow's bilinear filter."""
    covering = _resized(resample, pixels, covering_size((pixels.shape[0], pixels.shape[1]), steps.resize))
    if centered:
        covering = _crop(covering, steps.resize)
    return _crop(covering, (steps.height, steps.width), centered)


def squash(resample: Resample, pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Resize to the input's size, whatever the shape of the image."""
    return _resized(resample, pixels, (steps.height, steps.width))


def squash_and_crop(resample: Resample, pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Resize to `steps.resize`, whatever the shape of the image, and cut out the center."""
    return _crop(_resized(resample, pixels, steps.resize), (steps.height, steps.width))


def cover_box(box: tuple[int, int], resample: Resample, pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Resize to cover another size than `steps.resize`, and cut out the center."""
    return cover(resample, pixels, steps.model_copy(update={"resize": box}))


def cover_exactly(resample: Resample, pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Resize to cover the input's size, without the margin that is cut off."""
    return cover_box((steps.height, steps.width), resample, pixels, steps)


def letterbox(color: int, resample: Resample, pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Resize to fit in the input's size, and fill the rest with a color."""
    scale = min(steps.height / pixels.shape[0], steps.width / pixels.shape[1])
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[:2])
    inner = _resized(resample, pixels, (size[0], size[1]))
    padded = np.full((steps.height, steps.width, pixels.shape[2]), color, np.uint8)
    top, left = round((steps.height - size[0]) / 2 - 0.1), round((steps.width - size[1]) / 2 - 0.1)  # as YOLO's
    padded[top : top + size[0], left : left + size[1]] = inner
    return padded


def only_crop(_: Resample, pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Cut out the center without resizing."""
    return _crop(pixels, (steps.height, steps.width))
