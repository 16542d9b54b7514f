"""The check reports every defect of a damaged folder, and counts sound data as others do."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from resnet_ops.config import DataConfig
from resnet_ops.data import contact_sheet, image_sizes
from resnet_ops.data.audit import check_data
from resnet_ops.data.augment import pixel_statistics
from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.opening import open_source
from tests.conftest import CIFAR10, Ended, needs_cifar10
from tests.data.make_digits import pixels_and_labels
from tests.data.samples import noise, write_parquet


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 training and 3 validation images each, and every defect that the check knows."""
    root = tmp_path_factory.mktemp("damaged")
    for seed, name in enumerate(("cat", "dog")):
        for split, count in (("train", 12), ("val", 3)):
            for index, pixels in enumerate(noise(count, side=40, seed=10 * seed + len(split))):
                save(root / split / name / f"{index:02}.png", pixels)
    train, val = root / "train", root / "val"
    (val / "dog" / "conflict.png").write_bytes((train / "cat" / "00.png").read_bytes())
    (val / "cat" / "leak.png").write_bytes((train / "cat" / "01.png").read_bytes())
    (train / "dog" / "copy.png").write_bytes((train / "dog" / "05.png").read_bytes())
    save(train / "cat" / "grey.png", noise(1, side=40)[0, ..., 0])
    save(train / "cat" / "huge.png", np.tile(noise(1, side=40, seed=7)[0], (40, 60, 1)))
    save(train / "dog" / "blank.png", np.full((40, 40, 3), 9, np.uint8))
    jpeg = save(train / "dog" / "cut.jpg", noise(1, side=40, seed=8)[0])
    jpeg.write_bytes(jpeg.read_bytes()[:700])
    (train / "cat" / "zero.png").write_bytes(b"")
    (train / "cat" / "gone.png").symlink_to(root / "nowhere")
    (val / "dog" / "text.jpg").write_text("not an image")
    (train / "cat" / "notes.txt").write_text("not meant to be one")
    save(val / "bird" / "0.png", noise(1, side=40, seed=9)[0])
    (train / "empty").mkdir()
    return root


def test_every_defect_of_a_damaged_folder_is_reported(damaged: Path, cli: Callable[..., Ended], tmp_path: Path) -> None:
    picture = tmp_path / "damaged.png"
    ended = cli("data", "check", damaged, "--contact-sheet", picture, "--json")
    report = ended.json
    assert ended.code == 1
    assert report["fit"] is False
    assert report["per_class"] == {
        "cat": {"train": 14, "val": 4, "test": 0},
        "dog": {"train": 14, "val": 4, "test": 0},
        "empty": {"train": 0, "val": 0, "test": 0},
        "bird": {"train": 0, "val": 1, "test": 0},
    }
    assert report["images"] == [28, 9, 0]
    assert report["broken"] == [3, 1, 0]
    assert (report["copies"], report["in_both"], report["conflicting"]) == ([1, 0, 0], 2, 2)
    assert report["passed_over"] == 1
    assert report["sizes"] == [[40, 40], [40, 40], [1600, 2400]]
    assert report["distinct_sizes"] == 2
    assert report["modes"] == {"RGB": 36, "L": 1}
    assert "train/empty contains no images" in report["refused"]
    findings = {finding["name"]: finding for finding in report["findings"]}
    states = {name: finding["state"] for name, finding in findings.items() if finding["state"] != "ok"}
    assert states == {
        "training": "error",
        "broken images": "error",
        "label conflicts": "error",
        "in both splits": "warning",
        "copies": "warning",
        "unknown classes": "error",
        "few images": "warning",
        "grey images": "note",
        "blank images": "warning",
        "other files": "note",
    }
    broken = "\n".join(findings["broken images"]["details"])
    for name, reason in (("cut.jpg", "truncated"), ("zero.png", "empty"), ("gone.png", "No such file")):
        assert any(name in line and reason in line for line in broken.splitlines()), broken
    assert "text.jpg: it is not an image" in broken
    (conflict,) = findings["label conflicts"]["details"]
    assert "train/cat/00.png (train, cat) = " in conflict
    assert "val/dog/conflict.png (val, dog)" in conflict
    assert findings["other files"]["details"] == ["train/cat/notes.txt"]
    for detail in findings["broken images"]["details"]:
        assert detail in ended.err
    assert "Errors: training, broken images, label conflicts, unknown classes" in ended.err
    assert Image.open(picture).format == "PNG"


def test_what_training_would_refuse_once_decoded_is_reported_before(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    for name in ("cat", "dog"):
        for index, pixels in enumerate(noise(20, seed=len(name) + ord(name[0]))):
            save(tmp_path / name / f"{index}.png", pixels)
    assert cli("data", "check", tmp_path).code == 0
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    for index in range(3):
        (tmp_path / "cat" / f"{index}.png").write_bytes(whole[:60])
    report = cli("data", "check", tmp_path, "--json").json
    with pytest.raises(ValueError, match="cannot be decoded") as refusal:
        open_source(str(tmp_path)).prepare()
    assert report["refused"] == str(refusal.value)


def test_a_warning_fails_only_the_strict(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    file = write_parquet(tmp_path / "few.parquet", noise(40), [0] * 35 + [1] * 5)
    assert cli("data", "check", file, "--json").json["fit"]
    passed = cli("data", "check", file)
    assert (passed.code, passed.out.splitlines()[-1]) == (0, f"  next  resnet-ops train --data {file} --name NAME")
    assert cli("data", "check", file, "--strict").code == 1


def test_one_broken_parquet_file_hides_not_the_others(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", noise(20), [0, 1] * 10)
    (tmp_path / "train-1.parquet").write_bytes(b"cut")
    report = check_data(DataConfig(data=str(tmp_path)))
    assert report.images == (20, 0, 0)
    assert "train-1.parquet cannot be read as Parquet" in report.refused
    with pytest.raises(ValueError, match=r"train-1.parquet cannot be read as Parquet"):
        open_source(str(tmp_path))


def test_labels_without_a_class_are_counted(tmp_path: Path) -> None:
    report = check_data(DataConfig(data=str(write_parquet(tmp_path / "a.parquet", noise(20), [0, 5] * 10))))
    assert {name: images.train for name, images in report.per_class.items()} == {"cat": 10, "dog": 0, "5": 10}
    assert "labels from 0 to 5" in report.refused


def test_digits_are_counted_as_scikit_learn_has_them(cli: Callable[..., Ended]) -> None:
    report = cli("data", "check", "digits", "--strict", "--json").json
    labels = pixels_and_labels()[1]
    assert {name: sum(counts.values()) for name, counts in report["per_class"].items()} == {
        str(digit): int((labels == digit).sum()) for digit in range(10)
    }
    source = open_source("digits")
    assert report["images"] == [source.record.train_images, source.record.val_images, 0]
    assert report["fingerprint"] == source.record.fingerprint
    mean, std = pixel_statistics(source.decoded("train").counts)
    assert report["mean"] == pytest.approx(mean, rel=1e-12)
    assert report["std"] == pytest.approx(std, rel=1e-12)
    images = [row["bytes"] for row in pq.read_table(EMBEDDED["digits"]).column("image").to_pylist()]
    assert report["encoded_bytes"] == sum(map(len, images))
    assert report["decoded_bytes"] == len(images) * 64


@needs_cifar10
def test_cifar10s_test_images_are_counted(cli: Callable[..., Ended]) -> None:
    report = cli("data", "check", CIFAR10 / "test-00000-of-00001.parquet", "--json").json
    rows = pq.read_table(CIFAR10 / "test-00000-of-00001.parquet").to_pylist()
    counts = Counter(report["class_names"][row["label"]] for row in rows)
    assert {name: sum(both.values()) for name, both in report["per_class"].items()} == counts
    assert sum(report["copies"]) + report["in_both"] == len(rows) - len({row["img"]["bytes"] for row in rows})
    assert report["sizes"] == [[32, 32]] * 3


def test_the_contact_sheet_shows_the_images_pixel_for_pixel(cli: Callable[..., Ended], tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    assert cli("data", "check", "digits", "--contact-sheet", picture).code == 0
    assert list(tmp_path.iterdir()) == [picture]
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    pixels, labels = pixels_and_labels()
    times = contact_sheet.CELL // 8
    step = contact_sheet.CELL + contact_sheet.GAP
    left = drawn.shape[1] - contact_sheet.MARGIN - 10 * step + contact_sheet.GAP
    for row in range(10):
        known = {image.tobytes() for image in pixels[labels == row]}
        top = contact_sheet.MARGIN + contact_sheet.TITLE_HEIGHT + row * step
        for column in range(10):
            cell = drawn[top : top + contact_sheet.CELL, left + column * step :][:, : contact_sheet.CELL]
            small = cell[times // 2 :: times, times // 2 :: times]
            assert np.array_equal(cell, small.repeat(times, 0).repeat(times, 1))
            assert small[..., 0].tobytes() in known
        name = drawn[top : top + contact_sheet.CELL, : left - contact_sheet.GAP]
        assert (name < 100).any(), "no name is drawn"


def test_a_contact_sheet_is_as_large_as_what_is_on_it() -> None:
    wide = np.zeros((100, 400, 3), np.uint8)
    assert contact_sheet.fit_to_cell(wide).size == (128, 32)
    assert contact_sheet.fit_to_cell(wide[:30, :40]).size == (120, 90)
    rows = [
        contact_sheet.SheetRow("a name that is far too long to be written beside its images " * 3, "1", (wide,)),
        contact_sheet.SheetRow("none", "0", ()),
    ]
    drawn = contact_sheet.draw_contact_sheet("wide", "", rows, "3 more classes")
    assert drawn.height < drawn.width < 700
    chosen = contact_sheet.choose_examples(np.arange(3000) % 100)
    assert len(chosen) == contact_sheet.ROWS * contact_sheet.COLUMNS
    assert len(set((chosen % 100).tolist())) == contact_sheet.ROWS


def test_a_contact_sheet_that_cannot_be_written_is_refused_at_once(cli: Callable[..., Ended], tmp_path: Path) -> None:
    for wrong, word in ((tmp_path / "a.jpg", "not a PNG"), (tmp_path / "no" / "a.png", "folder does not exist")):
        ended = cli("data", "check", "digits", "--contact-sheet", wrong)
        assert ended.code == 2
        assert word in ended.err
    assert cli("data", "check", tmp_path / "nowhere").code == 2


def test_it_waits_for_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom resnet_ops.cli.main import run\nrun(['data', 'check', 'digits'])\n"
        "print('HEAVY', {'torch', 'ray', 'fsspec', 'upath'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY set()"


def test_bits_of_16_bit_images_are_reported(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (24, 12, 12)).astype(np.uint16)
    for index, image in enumerate(values):
        save(tmp_path / "ab"[index % 2] / f"{index}.png", image)
    (finding,) = [f for f in check_data(str(tmp_path)).findings if f.name == "16-bit images"]
    assert "12 of 16 bits: 0 to 4,095 become 0 to 255" in finding.summary
    report = check_data(str(tmp_path))
    assert report.mean == pytest.approx([values.mean() / 4095], abs=0.01)
    assert not report.having("warning", "error")


def test_values_beyond_those_of_the_images_that_were_sampled_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sizes, "WIDE_IMAGES_READ", 2)  # the first and the last
    for index in range(24):
        save(tmp_path / "ab"[index // 12] / f"{index:02}.png", np.full((12, 12), 3000 + index, np.uint16))
    brightest = save(tmp_path / "a" / "05.png", np.full((12, 12), 5000, np.uint16))
    (finding,) = [f for f in check_data(str(tmp_path)).findings if f.name == "too bright"]
    assert finding.details == (str(brightest),)


def test_images_whose_ends_training_does_not_see_are_reported(tmp_path: Path) -> None:
    for index in range(24):
        side = save(tmp_path / "ab"[index % 2] / f"{index:02}.png", noise(1, side=40, seed=index)[0])
    wide = save(side.with_name("wide.png"), np.tile(noise(1, side=40)[0], (1, 2, 1)))
    (finding,) = [f for f in check_data(str(tmp_path)).findings if f.name == "long images"]
    assert (finding.state, finding.details) == ("note", (str(wide),))
    assert "--random-resized-crop" in finding.summary
