"""The validator is validated: sound exports pass, planted faults are refuted, each by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from resnet_ops.data.cache import Images
from resnet_ops.errors import UserError
from resnet_ops.export import graph, runtime
from resnet_ops.export.proof import Proof, prove
from resnet_ops.models import build
from resnet_ops.runs import Epoch
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo

OPSET = 18
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def make_checkpoint(path: Path, model: str, side: int = 32, channels: int = 3, seed: int = 0) -> Checkpoint:
    """A network with weights and BatchNorm statistics that say something, saved and read back."""
    torch.manual_seed(seed)
    network = build(model, num_classes=10, in_channels=channels)
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(32, channels, side, side) * 1.5 + 0.3)
    info = CheckpointInfo(
        model=model,
        shortcut=None if model.startswith("plain") else network.shortcut,
        class_names=tuple("abcdefghij"),
        channels=channels,
        height=side,
        width=side,
        mean=MEAN[:channels],
        std=STD[:channels],
        data="noise",
        data_fingerprint="0",
        metrics=Epoch(
            epoch=1, step=1, train_loss=1, train_error=1, val_loss=1, val_error=1, lr=1, images_per_second=1, seconds=1
        ),
    )
    checkpoints.save(path, info, {f"model/{name}": value for name, value in network.state_dict().items()})
    return checkpoints.read(path)


def make_images(side: int = 32, channels: int = 3) -> Images:
    """Smooth images, coloured so that red and blue differ."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (100, 4, 4, channels))
    pixels = coarse.repeat(side // 4, 1).repeat(side // 4, 2) * np.linspace(1, 0.3, channels)
    return Images(pixels.astype(np.uint8), rng.integers(0, 10, 100))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("c") / "c.safetensors", "resnet20")


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> onnx.ModelProto:
    return graph.to_onnx(checkpoint, OPSET)


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images()


def proof_of(model: onnx.ModelProto, checkpoint: Checkpoint, images: Images, folder: Path) -> Proof:
    file = folder / "m.onnx"
    file.write_bytes(graph.write(model))
    return prove(file, checkpoint, images, opset=OPSET, provider=runtime.CPU)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def change(model: onnx.ModelProto, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the initializer called `name`."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(new(numpy_helper.to_array(tensor).copy()), name))
            return
    raise AssertionError(f"no {name} among {[t.name for t in model.graph.initializer]}")


def change_metadata(model: onnx.ModelProto, **update: object) -> None:
    for entry in model.metadata_props:
        if entry.key == "preprocessing":
            entry.value = json.dumps(json.loads(entry.value) | update)


# The faults, each as it happens in practice


def swapped_channels(model: onnx.ModelProto) -> None:
    change(model, "conv1.weight", lambda w: np.ascontiguousarray(w[:, ::-1]))  # trained on RGB, fed BGR


def missing_normalisation(model: onnx.ModelProto) -> None:
    change_metadata(model, mean=[0, 0, 0], std=[1, 1, 1])


def raw_pixels(model: onnx.ModelProto) -> None:
    change_metadata(model, scale=1)


def another_data_sets_normalisation(model: onnx.ModelProto) -> None:
    change_metadata(model, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def swapped_means(model: onnx.ModelProto) -> None:
    change_metadata(model, mean=list(MEAN[::-1]))


def nan_weight(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, np.nan, w).astype(w.dtype))


def noise_of_a_thousandth(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    for tensor in list(model.graph.initializer):
        if numpy_helper.to_array(tensor).dtype == np.float32:
            change(model, tensor.name, lambda w: (w * (1 + 1e-3 * rng.standard_normal(w.shape))).astype(np.float32))


def weights_in_half_precision(model: onnx.ModelProto) -> None:
    for tensor in list(model.graph.initializer):
        if numpy_helper.to_array(tensor).dtype == np.float32:
            change(model, tensor.name, lambda w: w.astype(np.float16).astype(np.float32))


def classes_in_another_order(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", lambda w: np.roll(w, 1, 0))
    change(model, "fc.bias", lambda b: np.roll(b, 1, 0))


def class_names_in_another_order(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        if entry.key == "class_names":
            entry.value = json.dumps(json.loads(entry.value)[::-1])


def frozen_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


FAULTS = {
    swapped_channels: "validation set",
    missing_normalisation: "validation set",
    raw_pixels: "validation set",
    another_data_sets_normalisation: "validation set",
    swapped_means: "validation set",
    nan_weight: "validation set",
    noise_of_a_thousandth: "validation set",
    weights_in_half_precision: "validation set",
    classes_in_another_order: "top-1 agreement",
    class_names_in_another_order: "classes",
    frozen_batch: "file",
    another_opset: "file",
    no_metadata: "classes",
}


def test_a_sound_export_is_proven(
    model: onnx.ModelProto, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    proof = proof_of(model, checkpoint, images, tmp_path)
    assert proof.validated, proof.refuted_by
    assert proof.top1_agreement == 1
    assert proof.max_rel_diff < 2e-6
    assert proof.nodes_by_provider == {runtime.CPU: len(model.graph.node)}
    assert proof.images == 100


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_refuted(
    fault: Callable[[onnx.ModelProto], None],
    model: onnx.ModelProto,
    checkpoint: Checkpoint,
    images: Images,
    tmp_path: Path,
) -> None:
    faulty = copy(model)
    fault(faulty)
    proof = proof_of(faulty, checkpoint, images, tmp_path)
    assert not proof.validated
    assert any(check.name.startswith(FAULTS[fault]) for check in proof.refuted_by), proof.refuted_by
    assert all("\n" not in check.found for check in proof.checks)


def test_batchnorm_in_training_mode_is_refuted(
    model: onnx.ModelProto, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    """What a forgotten eval() makes: a BatchNorm, not folded, that uses the batch's own statistics."""
    faulty = copy(model)
    nodes = faulty.graph.node
    first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    out = nodes[first].output[0]
    nodes[first].output[0] = f"{out}_raw"
    for name, value in (("one", 1.0), ("zero", 0.0)):
        faulty.graph.initializer.append(numpy_helper.from_array(np.full(16, value, np.float32), name))
    inputs = [f"{out}_raw", "one", "zero", "zero", "one"]
    nodes.insert(
        first + 1, helper.make_node("BatchNormalization", inputs, [out, "new_mean", "new_var"], training_mode=1)
    )
    proof = proof_of(faulty, checkpoint, images, tmp_path)
    refuted = {check.name: check.found for check in proof.refuted_by}
    assert "BatchNorm not folded" in refuted["file"]
    assert any(name.startswith("validation set") for name in refuted)


def test_another_epochs_weights_are_refuted(
    model: onnx.ModelProto, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other.safetensors", "resnet20", seed=1)
    assert not proof_of(model, other, images, tmp_path).validated


def test_another_accuracy_than_in_training_is_refuted(
    model: onnx.ModelProto, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(graph.write(model))
    proof = prove(file, checkpoint, images, opset=OPSET, provider=runtime.CPU, recorded_accuracy=0.99)
    assert [check.name for check in proof.refuted_by] == ["accuracy as in training"]


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x0a" * 50])
def test_a_file_that_is_not_onnx_is_refuted(
    content: bytes, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    proof = prove(tmp_path / "m.onnx", checkpoint, images, opset=OPSET, provider=runtime.CPU)
    assert not proof.validated


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [("resnet8", 8, 1), ("plain20", 32, 3), ("resnet50-cifar", 12, 3), ("resnet18", 64, 3), ("resnet50", 64, 1)],
)
def test_every_family_is_proven(name: str, side: int, channels: int, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c.safetensors", name, side, channels)
    proof = proof_of(graph.to_onnx(made, OPSET), made, make_images(side, channels), tmp_path)
    assert proof.validated, proof.refuted_by


@pytest.mark.parametrize("opset", [20, 23])
def test_the_opset_is_the_one_asked_for(opset: int, checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(graph.write(graph.to_onnx(checkpoint, opset)))
    assert prove(file, checkpoint, images, opset=opset, provider=runtime.CPU).validated


def test_exporting_twice_gives_the_same_bytes_without_paths(
    model: onnx.ModelProto, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = replace(checkpoint, path=tmp_path / "elsewhere.safetensors")
    content = graph.write(graph.to_onnx(moved, OPSET))
    assert content == graph.write(model)
    assert b".py" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_the_file_tells_all_that_is_needed_to_use_it(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(graph.write(model))
    session = runtime.load(tmp_path / "m.onnx", runtime.CPU)
    assert json.loads(session.metadata["class_names"]) == list("abcdefghij")
    preprocessing = json.loads(session.metadata["preprocessing"])
    assert (preprocessing["mean"], preprocessing["std"], preprocessing["color"]) == (list(MEAN), list(STD), "RGB")
    assert session.session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert session.session.get_outputs()[0].shape == ["batch", 10]


@pytest.mark.skipif(runtime.has_gpu(), reason="says what happens where there is no GPU")
def test_cuda_is_refused_where_there_is_none(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NVIDIA GPU"):
        runtime.choose_provider("cuda")
    assert runtime.choose_provider("auto") == runtime.CPU
    (tmp_path / "m.onnx").write_bytes(graph.write(model))
    with pytest.raises(UserError, match="CUDAExecutionProvider"):  # no silent fallback to the CPU
        runtime.load(tmp_path / "m.onnx", runtime.CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(not runtime.has_gpu(), reason="needs a CUDA GPU")
def test_every_node_runs_on_cuda(
    model: onnx.ModelProto, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(graph.write(model))
    proof = prove(file, checkpoint, images, opset=OPSET, provider=runtime.choose_provider("cuda"))
    assert proof.validated, proof.refuted_by
    assert set(proof.nodes_by_provider) == {runtime.CUDA}
