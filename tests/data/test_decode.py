"""Decoding of one image: resized as torchvision resizes it, from whatever bytes are stored."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from resnet_ops.data import decode as decoding
from resnet_ops.data.decode import CropSpec, decode, decode_with_aspect
from resnet_ops.data.image_sizes import stored_size
from tests.export.samples import png


@pytest.mark.parametrize(
    ("cover", "size"), [(224, (191, 382)), (224, (382, 191)), (256, (982, 1473)), (32, (392, 588)), (40, (33, 57))]
)
def test_an_image_is_resized_and_cropped_as_by_torchvision(cover: int, size: tuple[int, int]) -> None:
    """Also to sizes in whole pixels that floating point puts just below: 382 x 191 covers 224 as 448 x 224."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = v2.Compose([v2.Resize(cover), v2.CenterCrop(cover)])(Image.fromarray(image))
    assert np.array_equal(decode(png(image), CropSpec((cover, cover), cover, cover, 3)), np.asarray(theirs))


@pytest.mark.parametrize("side", [24, 32, 64, 96, 128, 160, 224, 288])
def test_validation_images_are_cropped_as_by_torchvision(side: int) -> None:
    """Training crops from squares that are cropped already: both crops together must be the one of a user's program."""
    (cover, _), rng = stored_size((side, side)), np.random.default_rng(side)
    theirs = v2.Compose([v2.Resize(cover), v2.CenterCrop(side)])
    for size in rng.integers(30, 400, (12, 2)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        ours = decode(png(image), CropSpec((cover, cover), side, side, 3))
        assert np.array_equal(ours, np.asarray(theirs(Image.fromarray(image)))), size


def jpeg(image: Image.Image, mode: str = "RGB", orientation: int = 1, **options: object) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.convert(mode).save(buffer, "JPEG", exif=exif, **options)
    return buffer.getvalue()


KINDS: dict[str, dict[str, object]] = {
    "usual": {},
    "progressive": {"progressive": True, "quality": 95, "subsampling": 0},
    "coarse": {"quality": 60, "subsampling": 2},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK", "quality": 95},
    "mirrored": {"orientation": 2},
    "portrait": {"orientation": 6},
    "transverse": {"orientation": 7},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_photos_are_resized_as_by_torchvision_from_their_stored_bytes(photo: str, kind: str) -> None:
    """To the level where they are decoded as they are; within the documented bounds where they are much larger.

    639x427 pixels, so that blocks of JPEG's reduced scales reach beyond the image.
    """
    encoded = jpeg(Image.fromarray(load_sample_image(photo)[:, :639]), **KINDS[kind])  # type: ignore[arg-type]
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    for cover in (400, 100, 86, 85, 42, 21):
        theirs = np.asarray(v2.Compose([v2.Resize(cover), v2.CenterCrop(cover)])(upright)).astype(int)
        difference = np.abs(decode(encoded, CropSpec((cover, cover), cover, cover, 3)) - theirs)
        reduced = cover * 2 * decoding.DRAFT_MARGIN <= 427
        assert difference.mean() <= (0.8 if reduced else 0), cover
        assert np.percentile(difference, 99) <= (4 if reduced else 0), cover
        assert difference.max() <= (20 if reduced else 0), cover
        squeezed = np.asarray(upright.resize((cover, cover), Image.Resampling.BILINEAR)).astype(int)
        pixels, aspect = decode_with_aspect(encoded, CropSpec((cover, cover), cover, cover, 3, whole=True))
        assert np.abs(pixels - squeezed).mean() <= (0.8 if reduced else 0), cover
        assert aspect == upright.width / upright.height


def test_large_jpegs_are_decoded_at_a_reduced_scale() -> None:
    photo = load_sample_image("china.jpg")
    encoded = jpeg(Image.fromarray(photo))
    full = np.asarray(Image.open(io.BytesIO(encoded)).resize((96, 64), Image.Resampling.BILINEAR))
    pixels = decode(encoded, CropSpec((64, 96), 64, 96, 3))
    assert not np.array_equal(pixels, full)  # or nothing is gained in speed


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_16_bits_are_scaled_by_the_bits_that_are_used(bits: int) -> None:
    white = 2**bits - 1
    values = np.linspace(0, white, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    crop = CropSpec((64, 64), 64, 64, 1, bit_depth=bits)
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, kind)
        pixels = decode(buffer.getvalue(), crop)[..., 0]
        assert np.abs(pixels - values / white * 255).max() <= 0.5
        assert len(np.unique(pixels)) == 256
        assert decoding.largest_value(buffer.getvalue()) == white
        darker = decode(buffer.getvalue(), replace(crop, bit_depth=8))
        assert np.array_equal(darker[..., 0], values.clip(max=255))  # brighter values become white, not black
