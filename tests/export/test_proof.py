"""The verification is verified: planted faults are found, each by the check that is meant for it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from resnet_ops.errors import UserError
from resnet_ops.export import graph, precision, runtime
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.reference import Reference
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.samples import MEAN, OPSET, change, copy, finish, make_checkpoint, make_lower, verify_model

Fault = Callable[[onnx.ModelProto], None]


def change_metadata(model: onnx.ModelProto, key: str, new: Callable[[str], str]) -> None:
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = new(entry.value)
            return
    raise AssertionError(key)


def change_steps(model: onnx.ModelProto, **update: object) -> None:
    change_metadata(model, "preprocessing", lambda text: json.dumps(json.loads(text) | update))


def change_nodes(model: onnx.ModelProto, operator: str, **attributes: object) -> None:
    for node in model.graph.node:
        if node.op_type == operator:
            others = [a for a in node.attribute if a.name not in attributes]
            del node.attribute[:]
            node.attribute.extend(
                [*others, *(helper.make_attribute(name, value) for name, value in attributes.items())]
            )


def every_weight(model: onnx.ModelProto, new: Callable[[np.ndarray], np.ndarray]) -> None:
    for tensor in list(model.graph.initializer):
        if numpy_helper.to_array(tensor).dtype == np.float32:
            change(model, tensor.name, lambda w: new(w).astype(np.float32))


# The faults, each as it happens in practice


def swapped_channels(model: onnx.ModelProto) -> None:
    change(model, "conv1.weight", lambda w: np.ascontiguousarray(w[:, ::-1]))  # trained on RGB, fed BGR


def missing_normalization(model: onnx.ModelProto) -> None:
    change_steps(model, mean=[0, 0, 0], std=[1, 1, 1])


def pixels_to_255(model: onnx.ModelProto) -> None:
    change_steps(model, scale=1)


def another_datasets_normalization(model: onnx.ModelProto) -> None:
    change_steps(model, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def swapped_means(model: onnx.ModelProto) -> None:
    change_steps(model, mean=list(MEAN[::-1]))


def nan_weight(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, np.nan, w).astype(w.dtype))


def infinite_bias(model: onnx.ModelProto) -> None:
    change(model, "fc.bias", lambda b: np.where(np.arange(b.size) == 1, np.inf, b).astype(b.dtype))


def noise_of_a_thousandth(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    every_weight(model, lambda w: w * (1 + 1e-3 * rng.standard_normal(w.shape)))


def noise_of_a_hundredth_in_one_layer(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    change(
        model,
        "layer2.0.conv2.weight",
        lambda w: (w * (1 + 1e-2 * rng.standard_normal(w.shape))).astype(np.float32),
    )


def weights_in_half_precision(model: onnx.ModelProto) -> None:
    every_weight(model, lambda w: w.astype(np.float16))


def a_dead_channel(model: onnx.ModelProto) -> None:
    change(model, "layer1.0.conv1.weight", lambda w: w * (np.arange(len(w)) != 5).reshape(-1, 1, 1, 1).astype(w.dtype))


def transposed_classifier(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", lambda w: np.ascontiguousarray(w.T).reshape(w.shape))


def classes_in_another_order(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", lambda w: np.roll(w, 1, 0))
    change(model, "fc.bias", lambda b: np.roll(b, 1, 0))


def class_names_in_another_order(model: onnx.ModelProto) -> None:
    change_metadata(model, "class_names", lambda text: json.dumps(json.loads(text)[::-1]))


def a_missing_relu(model: onnx.ModelProto) -> None:
    relu = [node for node in model.graph.node if node.op_type == "Relu"][5]
    relu.op_type = "Identity"


def a_missing_shortcut(model: onnx.ModelProto) -> None:
    add = [node for node in model.graph.node if node.op_type == "Add"][1]
    add.op_type = "Identity"
    del add.input[0 if "relu" in add.input[0] else 1]


def frozen_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def a_false_precision(model: onnx.ModelProto) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "precision", "fp16"


def another_networks_name(model: onnx.ModelProto) -> None:
    change_metadata(model, "model", lambda _: "resnet56")


def probabilities_said_to_be_logits(model: onnx.ModelProto) -> None:
    graph.append_softmax(model)


def a_dynamic_operator_of_others(model: onnx.ModelProto) -> None:
    model.graph.node[3].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


FAULTS: dict[Fault, str] = {
    swapped_channels: "validation set",
    missing_normalization: "validation set",
    pixels_to_255: "validation set",
    another_datasets_normalization: "validation set",
    swapped_means: "validation set",
    nan_weight: "validation set",
    infinite_bias: "random pixels",
    noise_of_a_thousandth: "validation set",
    noise_of_a_hundredth_in_one_layer: "validation set",
    weights_in_half_precision: "validation set",
    a_dead_channel: "validation set",
    transposed_classifier: "top-1 agreement",
    classes_in_another_order: "top-1 agreement",
    class_names_in_another_order: "metadata",
    a_missing_relu: "validation set",
    a_missing_shortcut: "validation set",
    frozen_batch: "file",
    another_opset: "file",
    no_metadata: "file",
    a_false_precision: "file",
    another_networks_name: "metadata",
    probabilities_said_to_be_logits: "validation set",
    a_dynamic_operator_of_others: "file",
}

# And those of a file that takes raw pixels


def resized_without_antialiasing(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.output[0] == "preprocess/reach":
            node.input[:] = ["preprocess/step", "preprocess/step"]


def resized_half_a_pixel_off(model: onnx.ModelProto) -> None:
    change(model, "preprocess/one", lambda one: one * 0)


def levels_cut_off_instead_of_rounded(model: onnx.ModelProto) -> None:
    change(model, "preprocess/half_level", lambda half: half * 0)


def cut_one_pixel_off(model: onnx.ModelProto) -> None:
    change(model, "preprocess/inner", lambda inner: inner + 1)


def cut_without_rounding_to_even(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.output[0] == "preprocess/before_exact":
            node.op_type = "Floor"


def squashed_instead_of_cut(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.output[0] == "preprocess/wanted":
            node.op_type = "Min"


def height_and_width_exchanged(model: onnx.ModelProto) -> None:
    change_nodes(model, "Transpose", perm=[0, 3, 2, 1])


def another_mean_inside(model: onnx.ModelProto) -> None:
    change(model, "preprocess/mean", lambda mean: np.ascontiguousarray(mean[:, ::-1]))


RAW_FAULTS: dict[Fault, str] = {
    resized_without_antialiasing: "resize and crop",
    resized_half_a_pixel_off: "resize and crop",
    levels_cut_off_instead_of_rounded: "resize and crop",
    cut_one_pixel_off: "validation set",
    cut_without_rounding_to_even: "resize and crop",
    squashed_instead_of_cut: "resize and crop",
    height_and_width_exchanged: "validation set",
    another_mean_inside: "validation set",
}


@pytest.mark.parametrize("fault", [*FAULTS, *RAW_FAULTS], ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_refuted(
    fault: Fault,
    model: onnx.ModelProto,
    raw_model: onnx.ModelProto,
    reference: Reference,
    images: ValidationImages,
    tmp_path: Path,
) -> None:
    faulty = copy(raw_model if fault in RAW_FAULTS else model)
    fault(faulty)
    report = verify_model(faulty, reference, images, tmp_path, black_box=True)
    assert not report.validated
    by = (FAULTS | RAW_FAULTS)[fault]
    assert by in [check.name for check in report.failed_checks], report.failed_checks
    assert all("\n" not in check.result for check in report.checks)


def test_batchnorm_in_training_mode_is_refuted(
    model: onnx.ModelProto, reference: Reference, images: ValidationImages, tmp_path: Path
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
    report = verify_model(faulty, reference, images, tmp_path, black_box=True)
    refuted = {check.name: check.result for check in report.failed_checks}
    assert "BatchNorm not folded" in refuted["file"]
    assert "validation set" in refuted


def test_another_epochs_weights_are_refuted(
    model: onnx.ModelProto, checkpoint: Checkpoint, images: ValidationImages, tmp_path: Path
) -> None:
    """A stale file, and one that says that it is of the checkpoint that it is not of."""
    other = make_checkpoint(tmp_path / "other.safetensors", "resnet8", stored=33, seed=1)
    stale = verify_model(model, Reference(other), images, tmp_path)
    refuted = {check.name: check.result for check in stale.failed_checks}
    assert "another checkpoint" in refuted["metadata"]
    lying = finish(copy(model), other)
    refuted = [check.name for check in verify_model(lying, Reference(other), images, tmp_path).failed_checks]
    assert "validation set" in refuted
    assert "metadata" not in refuted


def test_another_accuracy_than_in_training_is_refuted(
    model: onnx.ModelProto, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    report = verify_model(model, reference, images, tmp_path, training_accuracy=0.99)
    assert [check.name for check in report.failed_checks] == ["accuracy as in training"]


def test_half_precision_that_overflows_is_refuted(
    model: onnx.ModelProto, checkpoint: Checkpoint, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    """Values of 1e6 between two layers: nothing in fp32, infinite in fp16. Ours keeps those nodes in fp32."""
    huge = copy(model)
    large = np.float32(1e6)
    change(huge, "layer1.0.conv1.weight", lambda w: w * large)
    bias = next(n.input[2] for n in huge.graph.node if n.op_type == "Conv" and n.input[1] == "layer1.0.conv1.weight")
    change(huge, bias, lambda b: b * large)
    change(huge, "layer1.0.conv2.weight", lambda w: w / large)
    assert verify_model(huge, reference, images, tmp_path, black_box=True).validated
    naive = finish(convert_float_to_float16(copy(huge), keep_io_types=True), checkpoint, precision="fp16")
    precision._sort_nodes(naive)
    refuted = [check.name for check in verify_model(naive, reference, images, tmp_path, black_box=True).failed_checks]
    assert "validation set" in refuted
    steps = Preprocessing.of(checkpoint.info, "normalized")
    converted, choice = precision.to_fp16(copy(huge), normalize_pixels(images.sample(32, steps.crop), steps))
    assert "in fp32" in choice
    kept = finish(converted, checkpoint, precision="fp16", precision_choice=choice)
    report = verify_model(kept, reference, images, tmp_path, precision="fp16", black_box=True)
    assert report.validated, report.failed_checks
    change_metadata(kept, "precision_choice", lambda _: "all nodes")
    (refuted_check,) = verify_model(kept, reference, images, tmp_path, black_box=True).failed_checks
    assert (refuted_check.name, "in fp32" in refuted_check.result) == ("metadata", True)
    change(model := copy(model), "fc.weight", lambda w: w * large)  # of which nothing is computed any more
    assert precision.to_fp16(model, normalize_pixels(images.sample(32, steps.crop), steps))[1].startswith("1 of")


def test_int8_without_calibration_are_refuted(
    model: onnx.ModelProto, checkpoint: Checkpoint, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    """Ranges of black images for images of all colors."""
    steps = Preprocessing.of(checkpoint.info, "normalized")
    sound = make_lower(checkpoint, "int8", images.sample(64, steps.crop))
    report = verify_model(sound, reference, images, tmp_path, max_accuracy_drop=0.1)
    assert report.validated, report.failed_checks
    black = normalize_pixels(np.zeros((32, *steps.crop.shape), np.uint8), steps)
    graph.write(model, tmp_path / "fp32.onnx")
    faulty = precision._quantize(tmp_path / "fp32.onnx", tmp_path / "q.onnx", black, precision.METHODS[0][0], "u8s8")
    report = verify_model(
        finish(faulty, checkpoint, precision="int8"), reference, images, tmp_path, max_accuracy_drop=0.1
    )
    assert "mean difference" in [check.name for check in report.failed_checks], report.checks


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x0a" * 50])
def test_a_file_that_is_not_onnx_is_refuted(
    content: bytes, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    report = verify_file(tmp_path / "m.onnx", reference, images, ProofThresholds(runtime.CPU, OPSET))
    assert [check.name for check in report.failed_checks] == ["file"]


@pytest.mark.skipif(runtime.has_gpu(), reason="says what happens where there is no GPU")
def test_cuda_is_refused_where_there_is_none(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no NVIDIA GPU"):
        runtime.resolve_provider("cuda")
    assert runtime.resolve_provider("auto") == runtime.CPU
    graph.write(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="CUDAExecutionProvider"):  # no silent fallback to the CPU
        runtime.create_session(tmp_path / "m.onnx", runtime.CUDA)


def test_misplaced_nodes_are_named(
    model: onnx.ModelProto,
    reference: Reference,
    images: ValidationImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session as ONNX Runtime makes it where CUDA lacks three kernels."""
    create_session = runtime.create_session

    def three_misplaced(*arguments: object, **options: object) -> runtime.OnnxSession:
        session = create_session(*arguments, **options)  # type: ignore[arg-type]
        moved = [runtime.GraphNode(node.name, node.operator, "AnotherExecutionProvider") for node in session.nodes[:3]]
        return runtime.OnnxSession(session.session, session.provider, session.metadata, (*moved, *session.nodes[3:]))

    monkeypatch.setattr(runtime, "create_session", three_misplaced)
    (refuted,) = verify_model(model, reference, images, tmp_path).failed_checks
    assert refuted.name == "nodes"
    assert refuted.result.startswith("CPU requested, 3 nodes on Another: ")
