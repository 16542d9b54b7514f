"""Near copies of training images are found among validation and test images, and others are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resnet_ops.data import near_duplicates
from resnet_ops.data.audit import check_data
from resnet_ops.data.near_duplicates import SIDE
from tests.conftest import Ended
from tests.data.samples import encode_pixels, noise, write_class_folders


def scenes(count: int, seed: int) -> list[Image.Image]:
    """Smooth random pictures, most of whose contrast is in low frequencies, as in photos."""
    random = np.random.default_rng(seed)
    coarse = [random.integers(0, 256, (side, side, 3), np.uint8) for side in (4, 12) for _ in range(count)]
    large = [Image.fromarray(pixels).resize((120, 96), Image.Resampling.BICUBIC) for pixels in coarse]
    return [Image.blend(low, high, 0.4) for low, high in zip(large[:count], large[count:], strict=True)]


def png(image: Image.Image) -> bytes:
    return encode_pixels(np.asarray(image))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return buffer.getvalue()


CHANGED: dict[str, Callable[[Image.Image], bytes]] = {
    "encoded": jpeg,
    "smaller": lambda image: png(image.resize((60, 48))),
    "brighter": lambda image: png(ImageEnhance.Brightness(image).enhance(1.2)),
    "grey": lambda image: png(image.convert("L").convert("RGB")),
    "mirrored": lambda image: png(ImageOps.mirror(image)),
    "cropped": lambda image: png(image.crop((1, 1, 119, 95))),
}


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training images of 2 classes; of some there are changed ones among the others, and an exact copy."""
    root = tmp_path_factory.mktemp("leaking")
    images = scenes(20, seed=1)
    flat = png(Image.new("RGB", (50, 50), (9, 9, 9)))
    write_class_folders(root / "train", {"cat": [*map(png, images[:10]), flat], "dog": map(png, images[10:])})
    write_class_folders(root / "val", {"cat": map(png, scenes(6, seed=2)), "dog": map(png, scenes(6, seed=3))})
    write_class_folders(root / "test", {"cat": map(png, scenes(6, seed=4)), "dog": [png(images[19])]})
    for number, (name, change) in enumerate(CHANGED.items()):
        (root / "val" / "dog" / f"{name}.png").write_bytes(change(images[number]))
    (root / "val" / "cat" / "flat.png").write_bytes(png(Image.new("RGB", (50, 50), (12, 9, 9))))
    (root / "test" / "dog" / "of train.png").write_bytes(jpeg(images[12]))
    (root / "test" / "dog" / "of val.png").write_bytes(jpeg(scenes(6, seed=3)[5]))
    return root


def test_near_copies_in_other_splits_are_found(leaking: Path, cli: Callable[..., Ended]) -> None:
    report = check_data(str(leaking))
    assert report.near_duplicates == (6, 1, 1)
    assert report.in_both == 1
    (finding,) = (each for each in report.findings if each.name == "near duplicates")
    assert finding.state == "warning"
    assert finding.summary == (
        "6 images of the validation split look like training images, 1 image of the test split looks like training "
        "images, 1 image of the test split looks like validation images"
    )
    expected = {f"val/dog/{name}.png": f"train/cat/0{number}.png" for number, name in enumerate(CHANGED)}
    expected |= {"test/dog/of train.png": "train/dog/02.png", "test/dog/of val.png": "val/dog/05.png"}
    found = dict(line.replace(f"{leaking}/", "").split(" looks like ") for line in finding.details)
    assert {image.split(" (")[0]: other.split(" (")[0] for image, other in found.items()} == expected
    assert [image for image, other in found.items() if other.endswith(", mirrored")] == [
        "val/dog/mirrored.png (val, dog)"
    ]
    assert cli("data", "check", leaking, "--json").json["near_duplicates"] == [6, 1, 1]


@pytest.mark.parametrize(
    ("classes", "side", "state", "summary"),
    [
        ("train/cat train/dog val/cat val/dog test/cat", 50, "ok", "none found between training, validation and test"),
        ("train/cat train/dog test/cat test/dog", 50, "ok", "none found between training, validation and test images"),
        ("cat dog", 50, "ok", "none found between training and validation images"),
        ("cat dog empty", 50, "note", "not compared with those of other splits: there is one split only, as training"),
        ("cat dog", 12, "note", f"not compared with those of other splits: all are smaller than {SIDE} pixels"),
    ],
)
def test_what_was_compared_is_said(classes: str, side: int, state: str, summary: str, tmp_path: Path) -> None:
    images = [png(image.resize((side, side))) for image in scenes(60, seed=8)]
    write_class_folders(
        tmp_path,
        {name: images[12 * n : 12 * n + 12 * (name != "empty")] for n, name in enumerate(classes.split())},
    )
    (finding,) = (each for each in check_data(str(tmp_path)).findings if each.name == "near duplicates")
    assert finding.summary.startswith(summary)
    assert finding.state == state


def test_they_are_a_warning(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    images = scenes(24, seed=5)
    write_class_folders(tmp_path / "train", {"cat": map(png, images[:12]), "dog": map(png, images[12:])})
    write_class_folders(tmp_path / "val", {"cat": [jpeg(images[0])], "dog": map(png, scenes(1, seed=6))})
    sheet = tmp_path / "sheet.png"
    ended = cli("data", "check", tmp_path, "--contact-sheet", sheet)
    assert ended.code == 0
    assert "Warnings: near duplicates" in ended.out
    assert not check_data(str(tmp_path), strict=True).fit
    (tmp_path / "val" / "cat" / "00.png").write_bytes(png(scenes(1, seed=7)[0]))
    without = tmp_path / "without.png"
    assert cli("data", "check", tmp_path, "--strict", "--contact-sheet", without).code == 0
    assert Image.open(sheet).height > Image.open(without).height  # by the row of pairs


def test_the_nearest_of_all_is_found() -> None:
    """Against all distances counted bit by bit, with more hashes than a block has."""
    random = np.random.default_rng(0)
    others = random.integers(0, 2**64, (near_duplicates.BLOCK + 100, 4), np.uint64)
    images = random.integers(0, 2**64, (100, 4), np.uint64)
    bits = np.unpackbits(others[-90:].view(np.uint8), axis=1)
    for row in range(90):  # that differ in 1 to 90 bits
        bits[row, random.choice(256, row + 1, replace=False)] ^= 1
    images[:90] = np.packbits(bits, axis=1).view(np.uint64)
    images[40:90] ^= near_duplicates.MIRROR
    images[99] = others[0] = 0
    nearest = near_duplicates.find_nearest(images, others)
    in_low = (bits[:, :64] != np.unpackbits(others[-90:].view(np.uint8), axis=1)[:, :64]).sum(1)
    expected = (np.arange(1, 91) <= near_duplicates.MAX_BITS) & (in_low <= near_duplicates.MAX_LOW_BITS)
    assert nearest.matched[:90].tolist() == expected.tolist()
    assert expected.sum() > 40
    assert not nearest.matched[90:].any()
    rows = np.flatnonzero(expected)
    assert nearest.index[rows].tolist() == (len(others) - 90 + rows).tolist()
    assert nearest.distance[rows].tolist() == (rows + 1).tolist()
    assert nearest.mirrored[rows].tolist() == (rows >= 40).tolist()


def test_the_hash_of_a_mirrored_image_is_that_hash_mirrored() -> None:
    pixels = noise(50, side=32)[..., 0]
    hashes, mirrored = map(near_duplicates.perceptual_hashes, (pixels, np.ascontiguousarray(pixels[..., ::-1])))
    assert np.array_equal(mirrored, hashes ^ near_duplicates.MIRROR)
    assert not near_duplicates.perceptual_hashes(np.full((1, 32, 32), 7, np.uint8)).any()
