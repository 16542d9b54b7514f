"""The file: of the opset asked for, the same each time, with all that is needed to use it, and no more."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_ops.data.decode import decode
from resnet_ops.export import graph, runtime, untrusted
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.reference import Reference
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.samples import (
    MEAN,
    OPSET,
    RGB,
    STD,
    copy,
    finish,
    make_checkpoint,
    make_images,
    make_model,
    png,
    verify_model,
)


@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.slow), 23])
def test_the_opset_is_the_one_asked_for(
    opset: int, checkpoint: Checkpoint, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    model = finish(graph.to_onnx(checkpoint.info, checkpoint.model, opset), checkpoint, raw=True)
    assert verify_model(model, reference, images, tmp_path, opset=opset).validated


def test_exporting_twice_gives_the_same_bytes_without_paths(
    raw_model: onnx.ModelProto, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    graph.write(make_model(replace(checkpoint, path=tmp_path / "elsewhere.safetensors"), raw=True), tmp_path / "a.onnx")
    graph.write(raw_model, tmp_path / "b.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_the_exporter_says_nothing_where_stdout_is_read(
    checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    make_model(checkpoint)
    assert capfd.readouterr() == ("", "")


def test_the_metadata_holds_all_that_is_needed_to_use_the_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph.write(model, tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == list("abcdefghij")
    steps = json.loads(properties["preprocessing"])
    assert (steps["mean"], steps["std"], steps["color"], steps["layout"]) == (list(MEAN), list(STD), "RGB", "NCHW")
    assert (steps["resize"], steps["height"], steps["width"]) == ([33, 33], 32, 32)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert session.get_outputs()[0].shape == ["batch", 10]


def test_raw_pixels_become_what_torchvision_makes_of_them(raw_model: onnx.ModelProto, tmp_path: Path) -> None:
    """Of photos' sizes: resized to 40, cut to 32 and normalized by torchvision, pixels and logits are the same."""
    resized = make_checkpoint(tmp_path / "c.safetensors", "resnet8", stored=40)
    model = make_model(resized, raw=True)
    shape = ["batch", 3, 32, 32]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("preprocess/normalized", onnx.TensorProto.FLOAT, shape)
    )
    session = runtime.create_session(model.SerializeToString(), runtime.CPU).session
    transform = v2.Compose(
        [v2.Resize(40), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    network = resized.info.build_network().eval()
    network.load_state_dict(resized.model)
    for image in make_images((96, 144), count=3).at_original_size(3, RGB) + make_images(
        (57, 41), count=3
    ).at_original_size(3, RGB):
        logits, normalized = session.run(None, {"images": image[None]})
        theirs = transform(Image.fromarray(image))
        # One level of 255 is 0.016 normalized; two implementations round a few pixels apart.
        assert np.abs(normalized[0] - theirs.numpy()).max() < 0.017
        assert np.abs(normalized[0] - theirs.numpy()).mean() < 3e-4
        with torch.inference_mode():
            expected = network(theirs[None]).numpy()
        assert np.abs(logits - expected).max() < 1e-2 * np.abs(expected).max()


def probe(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """Return a copy of a model with intermediate values as its outputs."""
    probed = copy(model)
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return probed


SIZES = [
    (32, 32), (33, 33), (33, 36), (34, 33), (32, 33), (16, 16), (1, 1), (3, 5), (31, 20), (20, 31), (40, 50), (66, 99),
    (99, 66), (41, 57), (113, 77), (333, 500), (480, 640), (800, 600), (1201, 1799), (2100, 1300),
]  # fmt: skip


def test_raw_pixels_are_resized_as_pillow_does(raw_model: onnx.ModelProto, checkpoint: Checkpoint) -> None:
    """Of noise, larger and smaller, to the level: also where the exact value is halfway between two of them."""
    session = runtime.create_session(probe(raw_model, graph.PIXELS).SerializeToString(), runtime.CPU)
    crop = Preprocessing.of(checkpoint.info, "raw").crop
    rng = np.random.default_rng(0)
    for size in SIZES:
        batch = rng.integers(0, 256, (2, *size, 3), np.uint8)
        expected = np.stack([decode(png(image), crop) for image in batch])
        assert np.array_equal(session.run(batch).transpose(0, 2, 3, 1), expected), size
    for size in ((90, 40), (300, 70), (40, 300), (7, 64)):  # Pillow 13 takes rows first if they are tall
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        (pixels,) = session.run(image[None])
        assert np.abs(pixels.transpose(1, 2, 0) - decode(png(image), crop)).max() <= 1, size


@pytest.mark.parametrize("size", [(50, 40), (333, 500), (20, 31)])
def test_the_weights_of_pixels_survive_tf32(raw_model: onnx.ModelProto, size: tuple[int, int]) -> None:
    """It keeps 11 bits of each number; then the product with 8 bits is exact, and so are sums in fp32."""
    names = [f"preprocess/{axis}_{part}" for axis in ("width", "height") for part in ("weights", "corrections")]
    session = runtime.create_session(probe(raw_model, *names).SerializeToString(), runtime.CPU).session
    parts = session.run(None, {"images": np.zeros((1, *size, 3), np.uint8)})
    for part in parts:
        assert np.array_equal(part * 2048, np.rint(part * 2048))
        assert (part >= 0).all()
        assert (part <= 1).all()
    for axis, (weights, corrections) in enumerate((parts[:2], parts[2:])):
        sums = (weights.astype(np.float64) + corrections.astype(np.float64) / 2048).sum(axis)
        assert np.abs(sums - 1).max() < 1e-5


def test_the_report_is_appended_to_the_verified_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph.write(model, tmp_path / "m.onnx")
    verified = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(
        verified + graph.serialize_metadata({"validation": json.dumps({"validated": True})})
    )
    extended, metadata = untrusted.scan(tmp_path / "m.onnx")
    assert metadata.validation == {"validated": True}
    assert extended.graph == model.graph
    Classifier(tmp_path / "m.onnx", "cpu")


def test_weights_beyond_the_limit_of_one_file_go_beside_it(
    model: onnx.ModelProto,
    reference: Reference,
    images: ValidationImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, "ONE_FILE_BYTES", 100_000)
    report = verify_model(copy(model), reference, images, tmp_path)
    assert report.validated, report.failed_checks
    assert (tmp_path / "m.onnx").stat().st_size < 100_000 < (tmp_path / "m.onnx.data").stat().st_size
    (tmp_path / "m.onnx.data").unlink()
    (refuted,) = verify_file(tmp_path / "m.onnx", reference, images, ProofThresholds(runtime.CPU, OPSET)).failed_checks
    assert "needs 'm.onnx.data', which is missing next to it" in refuted.result
