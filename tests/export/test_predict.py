"""`predict` gives the outputs of the network for each image; broken images have an error and the rest goes on."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_ops.export import classifier as library
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.prediction_files import as_file_name, copy_images
from tests.conftest import DigitFiles, Ended

Cli = Callable[..., Ended]


def in_torch(files: DigitFiles, paths: list[Path]) -> np.ndarray:
    """Probabilities (N, 10), by the checkpoint and by hand."""
    info = files.checkpoint.info
    network = info.build_network()
    network.load_state_dict(files.checkpoint.model)
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths]).astype(np.float32) / 255
    x = torch.from_numpy((pixels - info.mean[0]) / info.std[0])[:, None].float()
    with torch.inference_mode():
        return network.eval()(x).softmax(1).numpy()


@pytest.mark.parametrize("given", ["normalized", "raw"])
def test_every_image_gets_the_networks_answer_in_the_order_people_count(
    cli: Cli, digit_files: DigitFiles, digit_images: list[Path], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MAX_DECODED_BYTES", 8 * 8 * 64)  # so that they do not all fit at once
    folder = digit_images[0].parents[1]
    ended = cli("predict", getattr(digit_files, given), folder, digit_images[7], "--top", 99, "--json")
    assert ended.code == 0, ended.err
    rows = ended.json["predictions"]
    assert [row["path"] for row in rows] == list(map(str, digit_images))
    names = digit_files.checkpoint.info.class_names
    probabilities = np.array(
        [[{t["class"]: t["probability"] for t in row["top"]}[name] for name in names] for row in rows]
    )
    np.testing.assert_allclose(probabilities, in_torch(digit_files, digit_images), atol=1e-5)
    assert all(len(row["top"]) == 10 for row in rows)
    assert all(row["top"] == sorted(row["top"], key=lambda t: -t["probability"]) for row in rows)


def test_an_image_of_any_size_and_color_is_brought_to_the_networks(
    cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    large = Image.open(digit_images[3]).convert("RGB").resize((80, 80), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    answers = [
        cli("predict", file, tmp_path / "large.jpg", digit_images[3], "--json").json["predictions"]
        for file in (digit_files.normalized, digit_files.raw)
    ]
    for one, same in answers:
        assert one["top"][0]["class"] == same["top"][0]["class"]
    assert answers[0][0]["top"][0]["probability"] == pytest.approx(answers[1][0]["top"][0]["probability"], abs=1e-4)


@pytest.mark.parametrize(("suffix", "of"), [("png", np.uint16), ("tif", np.int32)])
def test_images_of_16_bits_are_told_where_none_was_trained_on(
    suffix: str, of: type, cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    """Nothing says how many of their bits are used: those of 255 levels are next to black."""
    assert "16 bits" not in cli("predict", digit_files.normalized, digit_images[0]).err
    wide = tmp_path / f"wide.{suffix}"
    Image.fromarray(np.asarray(Image.open(digit_images[0]).convert("L")).astype(of)).save(wide)
    ended = cli("predict", digit_files.normalized, digit_images[0], wide)
    assert ended.code == 0
    assert "1 image of 16 bits, unlike those of training" in " ".join(ended.err.split())


def test_what_is_broken_is_named_and_the_rest_goes_on(
    cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    good = digit_images[0].read_bytes()
    for name, content in {"1 good.png": good, "2 empty.jpg": b"", "3 cut.png": good[:-40], "9.PNG": good}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(good)
    ended = cli("predict", digit_files.normalized, tmp_path, tmp_path / "notes.txt", "--json")
    assert ended.code == 1
    rows = {Path(row["path"]).name: row for row in ended.json["predictions"]}
    assert list(rows) == ["1 good.png", "2 empty.jpg", "3 cut.png", "9.PNG", "notes.txt"]
    assert rows["2 empty.jpg"]["error"] == "it is empty"
    assert "truncated" in rows["3 cut.png"]["error"] or "broken" in rows["3 cut.png"]["error"]
    assert rows["notes.txt"]["error"] == "it is not an image, but text"
    (alone,) = cli("predict", digit_files.normalized, digit_images[0], "--json").json["predictions"]
    for name in ("1 good.png", "9.PNG"):
        assert rows[name]["top"][0]["class"] == alone["top"][0]["class"]
        assert rows[name]["top"][0]["probability"] == pytest.approx(alone["top"][0]["probability"], abs=1e-6)
    assert ended.json["failed"] == 3
    printed = cli("predict", digit_files.normalized, tmp_path)
    assert printed.code == 1
    assert "it is empty" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: 2 of 4")


def test_the_last_line_counts_the_images_of_each_class(
    tmp_path: Path, digit_files: DigitFiles, digit_images: list[Path], cli: Callable[..., Ended]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    here = "predict", digit_files.normalized, digit_images[0].parent, tmp_path
    answers = cli(*here, "--json")
    counts = Counter(each["top"][0]["class"] for each in answers.json["predictions"] if each["top"])
    last = [line for line in cli(*here).err.splitlines() if line.startswith("51 images: ")]
    assert len(last) == 1
    listed = dict(part.rsplit(" ", 1) for part in last[0].removeprefix("51 images: ").split(", "))
    assert listed.pop("1 not") == "read"
    assert {name: int(count) for name, count in listed.items()} == counts
    assert "51 images: " not in answers.err + cli(*here, "--quiet").err


def test_a_wrong_request_is_one_line(
    cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    file, image = digit_files.normalized, digit_images[0]
    (tmp_path / "empty").mkdir()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(file.read_bytes()[:1000])
    for arguments, words in [
        ((file, tmp_path / "empty"), "No images found in"),
        ((file, image, tmp_path / "typo.jpg"), "typo.jpg does not exist"),
        ((file, image, "--top", 0), "--top"),
        ((image, image), "is an image (PNG), not an ONNX file"),
        ((cut, image), "is damaged"),
        ((tmp_path / "no.onnx", image), "does not exist"),
    ]:
        ended = cli("predict", *arguments)
        assert ended.code == 2, ended.err
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert words in line


def test_images_are_read_as_they_are_needed(
    digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer comes before the last images are opened: those may as well be gone."""
    monkeypatch.setattr(library, "MAX_DECODED_BYTES", 8 * 8 * 64)
    paths = [tmp_path / f"{index}.png" for index in range(5 * library.CHUNK)]
    for path in paths:
        shutil.copy(digit_images[0], path)
    answers = library.classify_files(Classifier(digit_files.normalized, "cpu"), paths, 1)
    first = next(answers)
    paths[-1].unlink()
    *_, last = answers
    assert first.top
    assert "No such file" in last.error


def test_predictions_become_tables_and_folders(
    cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    for number, part in enumerate(("a", "b")):  # two images of one name
        (tmp_path / "in" / part).mkdir(parents=True)
        shutil.copy(digit_images[number], tmp_path / "in" / part / "1.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    here = ("predict", digit_files.normalized, tmp_path / "in", "--top", 2)
    table, lines, folder = tmp_path / "classes.csv", tmp_path / "classes.jsonl", tmp_path / "sorted"
    ended = cli(*here, "--output", table, "--copy-to", folder, "--json")
    assert ended.code == 1  # one could not be decoded
    predictions = ended.json["predictions"]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "error"]
    for row, prediction in zip(rows, predictions, strict=True):
        top = prediction.get("top") or [{"class": "", "probability": ""}] * 2
        assert (row["path"], row["class"], row["class_2"]) == (prediction["path"], top[0]["class"], top[1]["class"])
        assert bool(row["error"]) == bool(prediction.get("error"))
        assert row["error"] or float(row["probability"]) == pytest.approx(top[0]["probability"], abs=1e-6)
    assert cli(*here, "--output", lines).code == 1
    assert [json.loads(line) for line in lines.read_text().splitlines()] == predictions
    copied = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sorted(copied.values()) == sorted(Path(row["path"]).read_bytes() for row in predictions)
    classes = {row["top"][0]["class"] for row in predictions if row.get("top")}
    assert {path.parts[0] for path in copied} == {*classes, "_not_decoded"}
    for wrong in (("--output", tmp_path / "a.txt"), ("--output", tmp_path / "no" / "a.csv"), ("--copy-to", folder)):
        assert cli(*here, *wrong).code == 2


@pytest.mark.parametrize("name", ["..", "../../etc", "a/b", ".", "", "\0", "a\nb", "/", "é" * 300, "C:\\x"])
def test_a_class_of_any_name_is_one_folder(tmp_path: Path, name: str) -> None:
    """Names are those of a file that anyone may have made."""
    folder = tmp_path / "in" / as_file_name(name)
    folder.mkdir(parents=True)
    assert folder.resolve().parent == (tmp_path / "in").resolve()


def test_no_two_classes_share_a_folder(tmp_path: Path, digit_images: list[Path]) -> None:
    names = ["x:1", "x*1", "x_1", "_not_decoded", "é" * 300, "é" * 301, ""]
    images = [Path(shutil.copy(digit_images[0], tmp_path / f"{number}.png")) for number in range(len(names) + 1)]
    answers = [(library.ClassProbability(name=name, probability=1.0),) for name in names]
    predictions = [library.Prediction(path=image, top=top) for image, top in zip(images, [*answers, ()], strict=True)]
    copy_images(tmp_path / "sorted", predictions)
    copied = {path.name: path.parent for path in (tmp_path / "sorted").glob("*/*")}
    assert len(set(copied.values())) == len(images)
    assert copied["2.png"].name == "x_1"
    assert copied[images[-1].name].name == "_not_decoded"


def test_what_is_said_after_the_classes(
    cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    for n, image in enumerate(digit_images[:2]):
        (tmp_path / "digits" / str(n)).mkdir(parents=True)
        shutil.copy(image, tmp_path / "digits" / str(n) / "1.png")
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / f"{n}.png").write_bytes(b"no image")
    assert "2 images: 2 not read\n" in cli("predict", digit_files.normalized, tmp_path / "bad").err
    hint = f"resnet-ops evaluate {digit_files.normalized} --data {tmp_path / 'digits'} measures the accuracy"
    assert hint in cli("predict", digit_files.normalized, tmp_path / "digits", "--top", 10).err
    assert "hint" not in cli("predict", digit_files.normalized, tmp_path / "digits" / "1", "--top", 10).err
