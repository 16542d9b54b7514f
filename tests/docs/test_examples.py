"""The examples: each program and the notebook run as they are, the page in a browser."""

import json
import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from resnet_ops.export import graph
from resnet_ops.export.classifier import predict
from resnet_ops.export.config import PredictConfig
from tests.conftest import DigitFiles
from tests.docs.reading import DOCS
from tests.export.browser import needs_onnxruntime_web, open_page
from tests.export.samples import copy, finish, make_checkpoint

EXAMPLES = DOCS / "examples"
# What a person does with the page: drops the network, then images, and looks at what stands beside them.
VISITOR = """<!doctype html><iframe src="index.html"></iframe><script type="module">
const frame = document.querySelector("iframe");
await new Promise((loaded) => { frame.onload = loaded; });
const drop = async (...names) => {
  const dataTransfer = new DataTransfer();
  for (const name of names) dataTransfer.items.add(new File([await (await fetch(name)).blob()], name));
  frame.contentDocument.dispatchEvent(new DragEvent("drop", {dataTransfer, cancelable: true}));
};
const page = frame.contentDocument, images = IMAGES;
const until = async (holds) => { while (!holds()) await new Promise((later) => setTimeout(later, 5)); };
const told = (text) => until(() => page.querySelector("[role=status]").textContent.includes(text));
await drop(images[0]);
await told("Drop an ONNX file first");
await drop("normalized.onnx");
await told("export it with --input raw");
await drop("raw.onnx", ...images);
await until(() => page.querySelectorAll("figure > :last-child:not(figcaption)").length === images.length);
const seen = {};
for (const figure of page.querySelectorAll("figure")) {
  seen[figure.querySelector("figcaption").textContent] = [...figure.querySelectorAll("li")].map(
    (li) => [li.firstChild.textContent, Number(li.querySelector("data").value)]);
}
await fetch("/outputs", {method: "POST", body: JSON.stringify(seen)});
</script>"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which programs that ask for a temporary one get theirs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_network_is_trained_exported_and_used(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(EXAMPLES / "train_export_predict.py"))
    assert names["exported"].validated
    assert "PASS" in capsys.readouterr().out
    assert names["predicted"].images == 10


@pytest.mark.slow
def test_a_network_is_fine_tuned_and_measured(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(EXAMPLES / "finetune_photos.py"))
    tested = names["tested"]
    assert tested.split == "test"
    assert tested.images > 30
    assert tested.top1 > 0.5
    assert "fine-tuned" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_ends_in_a_file(temporary: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / "search_and_export.py"))
    assert names["exported"].validated
    assert names["measured"].top1 > 0.8


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(temporary: Path) -> None:
    notebook = json.loads((EXAMPLES / "digits.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "outputs of somebody's machine"
    names: dict[str, Any] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for cell in cells:
            exec(compile("".join(cell["source"]), "digits.ipynb", "exec"), names)
    assert names["classifier"].class_names == tuple("0123456789")
    assert len(names["epochs"]) == 4


@pytest.fixture(params=["grey", "RGB"])
def dropped(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, list[Path]]:
    """A file that takes floats, the same network with raw pixels, and images to drop on the page."""
    if request.param == "grey":
        files: DigitFiles = request.getfixturevalue("digit_files")
        return files.normalized, files.raw, request.getfixturevalue("digit_images")[:6]
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", (40, 36), stored=50)
    exported = graph.to_onnx(checkpoint.info, checkpoint.model, 18)
    normalized, raw = tmp_path / "normalized.onnx", tmp_path / "raw.onnx"
    graph.write(finish(copy(exported), checkpoint), normalized)
    graph.write(finish(exported, checkpoint, raw=True), raw)
    images = []
    for number, (name, size) in enumerate({"wide.png": (90, 40), "high.jpg": (61, 75), "turned.jpg": (64, 48)}.items()):
        y, x = np.indices(size[::-1])
        pixels = np.stack([x * 255 / size[0], y * 255 / size[1], (x * (number + 2) + y) % 256], -1).astype(np.uint8)
        image = Image.fromarray(pixels)
        image.getexif()[0x0112] = 6 if name == "turned.jpg" else 1  # the orientation
        image.save(tmp_path / name, exif=image.getexif(), quality=95)
        images.append(tmp_path / name)
    return normalized, raw, images


@needs_onnxruntime_web
def test_the_page_answers_as_predict_does(dropped: tuple[Path, Path, list[Path]]) -> None:
    normalized, raw, images = dropped
    visitor = VISITOR.replace("IMAGES", json.dumps([image.name for image in images]))
    page = (EXAMPLES / "browser/index.html").read_bytes()
    files = {"": visitor.encode(), "index.html": page, "normalized.onnx": normalized.read_bytes()}
    seen = open_page({**files, "raw.onnx": raw.read_bytes(), **{image.name: image.read_bytes() for image in images}})
    predicted = predict(PredictConfig(file=raw, images=tuple(images), top=5))
    assert len(seen) == predicted.images == len(images)
    for one in predicted.predictions:
        assert [name for name, _ in seen[one.path.name]] == [each.name for each in one.top]
        assert [share for _, share in seen[one.path.name]] == pytest.approx(
            [each.probability for each in one.top], abs=1e-5 if one.path.name.endswith("png") else 0.01
        )
