"""From images to answers, as a user goes: train, tune, export, validate, bench, predict, serve."""

import json
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from resnet_ops.data.opening import open_source
from tests.conftest import CIFAR10, COMMAND, Ended, needs_cifar10

EVERY = [(precision, given) for precision in ("fp32", "fp16", "int8") for given in ("normalized", "raw")]
SOME = [("fp32", "raw"), ("int8", "raw")]
FIELDS = {
    "onnx", "precision", "input", "provider", "validated", "nodes_by_provider", "max_abs_diff", "top1_agreement",
    "images", "val_accuracy_torch", "val_accuracy_onnx", "tolerance",
}  # fmt: skip


def some_of_cifar10(folder: Path) -> Path:
    """Some of its images, as they are stored."""
    folder.mkdir()
    for split, count in (("train", 1500), ("test", 200)):
        (first, *_) = sorted(CIFAR10.glob(f"{split}-*.parquet"))
        pq.write_table(pq.read_table(first).slice(0, count), folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    ("data", "forms"),
    [
        pytest.param("digits", EVERY, marks=pytest.mark.slow),
        pytest.param("cifar10", SOME, marks=[needs_cifar10, pytest.mark.slow]),
    ],
    ids=["digits", "cifar10"],
)
def test_from_images_to_answers(
    data: str, forms: list[tuple[str, str]], cli: Callable[..., Ended], tmp_path: Path
) -> None:
    where = some_of_cifar10(tmp_path / "cifar10") if data == "cifar10" else data
    runs = ("--runs-dir", tmp_path / "runs")

    def done(*arguments: object) -> Ended:
        ended = cli(*arguments, "--json")
        assert ended.code == 0, ended.err
        return ended

    done("train", "--data", where, "--model", "resnet8", "--epochs", 2, "--name", "alone", *runs)
    searched = done(
        "tune", "--data", where, "--depths", 8, "--lr", "0.1,0.2", "--trials", 2, "--epochs", 5, "--name", "best", *runs
    )
    best = searched.json["best"]["val_accuracy"]

    files: dict[tuple[str, str], Path] = {}
    for precision, given in forms:
        form = ("--precision", precision, "--input", given, "--max-accuracy-drop", 3)
        exported = done("export", "best", "--onnx", *form, *runs).json
        assert exported["validated"] is True
        assert exported["val_accuracy_torch"] == pytest.approx(best, abs=0.005)
        files[precision, given] = Path(exported["onnx"])
        held = done("validate", files[precision, given], "--max-accuracy-drop", 3)
        assert "accuracy as in metadata" in held.err
        assert {field: held.json[field] for field in FIELDS} == {field: exported[field] for field in FIELDS}
        assert held.json["top1_agreement"] >= 0.95
        if precision == "int8":
            assert len(exported["candidates"]) == 4
            assert sum(candidate["chosen"] for candidate in exported["candidates"]) == 1

    rows = done("bench", files["int8", "raw"], "--batch", "1,8", "--seconds", 0.1, "--no-compile").json["rows"]
    assert {row["batch"] for row in rows} == {1, 8}

    images = tmp_path / "images"
    images.mkdir()
    val_images = open_source(str(where)).load("val")
    for number in range(40):
        pixels = val_images.pixels[number]
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(images / f"{number}.png")
    answers = {}
    for form, file in files.items():
        predictions = done("predict", file, images, "--top", 1).json["predictions"]
        answers[form] = [prediction["top"][0]["class"] for prediction in predictions]
    names = open_source(str(where)).record.class_names
    right = sum(a == names[label] for a, label in zip(answers["fp32", "raw"], val_images.labels, strict=False))
    assert right / 40 == pytest.approx(best, abs=0.25)
    if data == "digits" and ("fp32", "normalized") in answers:
        assert answers["fp32", "raw"] == answers["fp32", "normalized"]
    for other in answers.values():
        assert sum(a == b for a, b in zip(other, answers["fp32", "raw"], strict=True)) >= 38
    assert (
        served(files["fp32", "raw"], sorted(images.iterdir(), key=lambda path: int(path.stem)))
        == answers["fp32", "raw"]
    )


def served(file: Path, images: list[Path]) -> list[str]:
    """What a service answers."""
    service = subprocess.Popen(
        [*COMMAND, "serve", str(file), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stdout is not None
        url = json.loads(service.stdout.readline())["url"]
        classes = []
        for image in images:
            with urllib.request.urlopen(f"{url}/classify?top=1", image.read_bytes(), timeout=30) as answer:
                classes.append(json.load(answer)["top"][0]["class"])
        return classes
    finally:
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=60)
