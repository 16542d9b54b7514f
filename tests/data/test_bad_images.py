"""Images of all formats and defects: what can be decoded is, the rest is left out, counted and named."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from resnet_ops.config import DataConfig
from resnet_ops.data.decode import CropSpec, DecodeError, decode, read_header
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from tests.data.samples import encode_pixels, noise, write_class_folders, write_parquet

PLAIN = noise(1, seed=7)[0]
FULL_SIZE = CropSpec((8, 8), 8, 8, 3)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def test_palettes_with_transparency_keep_their_colors() -> None:
    image = Image.fromarray(PLAIN).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    with_bytes = encode(image, "PNG", transparency=bytes([0, 128] + [255] * 14))
    assert np.array_equal(decode(with_bytes, FULL_SIZE), expected)
    assert np.array_equal(decode(encode(Image.fromarray(PLAIN).convert("RGBA"), "PNG"), FULL_SIZE), PLAIN)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        encoded = encode(Image.fromarray(values), kind)
        assert read_header(encoded).grey
        pixels = decode(encoded, CropSpec((8, 8), 8, 8, 1))[..., 0]
        assert np.abs(pixels - values / 257.0).max() <= 0.5


def test_grey_and_black_and_white_become_color_among_colors() -> None:
    for mode in ("L", "1", "LA"):
        image = Image.fromarray(PLAIN).convert(mode)
        expected = np.asarray(image.convert("L"))
        pixels = decode(encode(image, "PNG"), FULL_SIZE)
        assert all(np.array_equal(pixels[..., channel], expected) for channel in range(3))


def test_cmyk_becomes_rgb() -> None:
    plain = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    encoded = encode(Image.fromarray(plain).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert Image.open(io.BytesIO(encoded)).mode == "CMYK"
    assert np.abs(decode(encoded, FULL_SIZE).astype(int) - plain).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_picture(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (30, 200)]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(encoded)), "n_frames", 1) == 2
    assert np.abs(decode(encoded, FULL_SIZE).astype(int) - 30).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_put_upright(orientation: int) -> None:
    upright = np.zeros((60, 90, 3), np.uint8)  # red on top, green at the left
    upright[:20, :, 0], upright[:, :30, 1] = 255, 255
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.3, tag 274: what camera pixels are
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x), 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        encoded = encode(Image.fromarray(np.ascontiguousarray(undo[orientation](upright))), kind, exif=exif)
        assert (read_header(encoded).height, read_header(encoded).width) == (60, 90), kind
        pixels = decode(encoded, CropSpec((60, 90), 60, 90, 3)).astype(int)
        assert np.abs(pixels - upright)[5:15, 5:25].max() <= 30, kind
        assert np.abs(pixels - upright)[30:, 40:].max() <= 30, kind


def test_large_images_are_resized_and_cut_as_torchvision_does() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    resized = reference.resize(reference.pil_to_tensor(smooth), [256], antialias=True)
    expected = reference.center_crop(resized, [224, 224]).permute(1, 2, 0).numpy().astype(int)
    crop = CropSpec((256, 256), 224, 224, 3)
    assert np.abs(decode(encode(smooth, "PNG"), crop) - expected).max() <= 1
    # JPEG adds its own error.
    assert np.abs(decode(encode(smooth, "JPEG", quality=95), crop) - expected).mean() <= 2
    double = smooth.resize((1000, 750), Image.Resampling.BICUBIC)
    assert np.abs(decode(encode(double, "JPEG", quality=95), crop) - expected).mean() <= 2


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "it is not an image"),
        (encode_pixels(PLAIN)[:90], "truncated"),
        (encode_pixels(noise(1, 64)[0], "JPEG")[:700], "truncated"),
        (png_header(20_000, 20_000), "400000000 pixels"),
        (encode(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_what_cannot_be_decoded_says_why(encoded: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        decode(encoded, FULL_SIZE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_no_damage_raises_anything_else(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole, reasons = encode_pixels(noise(1, 16)[0], kind), []
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        for function in (read_header, lambda x: decode(x, FULL_SIZE)):
            try:
                function(bytes(damaged))
            except DecodeError as error:
                reasons.append(str(error))
    assert len(reasons) > 20
    assert all(reasons)
    assert not any("\n" in line for line in reasons)


def some_bad(root: Path, bad: dict[str, bytes | None]) -> DataConfig:
    """Return 200 images in two classes; `bad` replaces or adds some, None for one that does not exist."""
    images = noise(200)
    write_class_folders(root / "train", {"cat": images[:100], "dog": images[100:]})
    write_class_folders(root / "val", {"cat": noise(5, seed=1), "dog": noise(5, seed=2)})
    for name, content in bad.items():
        file = root / "train" / name
        file.unlink(missing_ok=True)
        if content is None:
            file.symlink_to(root / "gone.jpg")
        else:
            file.write_bytes(content)
    return DataConfig(data=str(root))


def test_bad_images_are_left_out_and_named(tmp_path: Path) -> None:
    bad = {"cat/03.png": b"", "cat/50.png": b"text", "dog/x.jpg": None, "dog/99.png": encode_pixels(PLAIN)[:80]}
    source = open_source(some_bad(tmp_path, bad)).prepare()
    assert (source.record.train_images, source.record.bad_images) == (197, 4)
    assert {(Path(b.name).relative_to(tmp_path / "train").as_posix()) for b in source.record.first_bad_images} == {*bad}
    assert "No such file" in next(b.reason for b in source.record.first_bad_images if b.name.endswith("x.jpg"))
    assert len(source.notes) == 1
    assert "Skipped 4 images" in source.notes[0]
    images = source.load("train")
    good = np.delete(noise(200), [3, 50, 199], axis=0)
    assert np.array_equal(images.pixels, good)
    assert images.labels.tolist() == [0] * 98 + [1] * 99
    counts = source.decoded("train").counts
    assert np.array_equal(counts, [np.bincount(good[..., c].ravel(), minlength=256) for c in range(3)])


def test_one_bad_image_is_an_error_where_that_is_asked_for(tmp_path: Path) -> None:
    config = some_bad(tmp_path, {"dog/07.png": b"text"})
    strict = config.model_copy(update={"on_bad_image": "fail"})
    for config_before in (strict, config, strict):  # decoded anew, then found decoded
        source = open_source(config_before)
        if config_before is config:
            assert source.prepare().record.bad_images == 1
            continue
        with pytest.raises(UserError, match=r"Cannot decode .*dog/07.png: it is not an image"):
            source.prepare()


def refused(source: Source, *words: str) -> None:
    with pytest.raises(UserError) as error:
        source.prepare()
    assert all(word in str(error.value) for word in words), error.value


def test_too_many_bad_images_are_an_error_whatever_was_asked(tmp_path: Path) -> None:
    many = {f"cat/{index:02}.png": b"text" for index in range(11)}
    refused(open_source(some_bad(tmp_path / "many", many)), "11 of 200 training images", "cat/00.png", "not an image")
    few = {f"cat/{index:02}.png": b"text" for index in range(10)}
    assert open_source(some_bad(tmp_path / "few", few)).prepare().record.bad_images == 10
    rare = some_bad(tmp_path / "rare", {})
    write_class_folders(tmp_path / "rare" / "train", {"rat": [b"text", b"text"]})
    refused(open_source(rare), "No image of class 'rat' can be decoded", "rat/00.png")
    nothing = write_class_folders(tmp_path / "nothing", {"cat": [b"x"] * 5, "dog": [b"y"] * 5})
    with pytest.raises(UserError, match=r"None of 10 images sampled can be decoded. First: .*cat/00.png"):
        open_source(str(nothing))


def test_bad_rows_of_parquet_are_left_out_too(tmp_path: Path) -> None:
    images: list[np.ndarray | bytes] = list(noise(60))
    images[7] = b"text"
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 30, row_group_size=13)
    write_parquet(tmp_path / "val.parquet", noise(4, seed=1), [0, 1] * 2)
    source = open_source(str(tmp_path)).prepare()
    assert source.record.first_bad_images[0].name == f"image 7 of {tmp_path}/train.parquet"
    assert np.array_equal(source.load("train").pixels, np.delete(noise(60), 7, axis=0))


def test_an_image_in_both_splits_is_noted(tmp_path: Path) -> None:
    config = some_bad(tmp_path, {})
    for name in ("a.png", "b.png"):
        (tmp_path / "val" / "cat" / name).write_bytes((tmp_path / "train" / "cat" / "00.png").read_bytes())
    source = open_source(config).prepare()
    assert source.notes == ("2 images of the 12 in the validation split are also in the training split.",)
    assert source.record.copies_warning.startswith("2 of the 12 validation images are training images, too: ")


def test_images_of_many_sizes_become_squares(tmp_path: Path) -> None:
    sizes = [noise(1, side)[0] for side in (50, 70, 90, 300)] * 3
    write_class_folders(tmp_path, {"cat": sizes, "dog": sizes})
    source = open_source(str(tmp_path))
    record = source.record
    assert (record.height, record.width, record.stored) == (224, 224, (256, 256))
    assert source.load("train").pixels.shape[1:] == (256, 256, 3)
    assert source.load("val").pixels.shape[1:] == (224, 224, 3)
    small = open_source(DataConfig(data=str(tmp_path), image_size=32))
    assert (small.record.height, small.record.stored) == (32, (36, 36))
    assert small.load("train").pixels.shape[1:] == (36, 36, 3)


def test_small_images_of_one_size_stay_as_they_are_unless_asked(tmp_path: Path) -> None:
    one_size = [image[:, :6] for image in noise(10)]
    write_class_folders(tmp_path, {"cat": one_size, "dog": one_size})
    record = open_source(str(tmp_path)).record
    assert (record.height, record.width, record.stored) == (8, 6, None)
    asked = open_source(DataConfig(data=str(tmp_path), image_size=16)).record
    assert (asked.height, asked.width, asked.stored) == (16, 16, (20, 20))
