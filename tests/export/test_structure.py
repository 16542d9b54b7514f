"""Graph and weights of a file are compared with those of its checkpoint: sound exports pass, planted faults do not."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from resnet_ops.errors import UserError
from resnet_ops.export import graph, precision, untrusted
from resnet_ops.export.claimed_network import check_layers
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.expected_graph import ExpectedGraph
from resnet_ops.export.folding import fold
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.reference import Reference
from resnet_ops.export.white_box import WhiteBox
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.samples import (
    OPSET,
    change,
    copy,
    finish,
    make_checkpoint,
    make_images,
    make_model,
    properties_of,
    verify_model,
)

Fault = Callable[[onnx.ModelProto], None]
LAYER = "layer2.0.conv2"


def open_box(model: onnx.ModelProto, checkpoint: Checkpoint | None, images: ValidationImages | None = None) -> WhiteBox:
    return WhiteBox(model, ModelMetadata.parse("m.onnx", properties_of(model)), checkpoint, images)


def failures(
    model: onnx.ModelProto,
    checkpoint: Checkpoint | None,
    images: ValidationImages | None = None,
    expected: ExpectedGraph | None = None,
) -> dict[str, str]:
    """Return the checks that fail, with their results; what is expected need not be built for each of many files."""
    box = open_box(model, checkpoint, images)
    metadata = box.metadata
    if expected is not None:
        vars(box)["expected"] = expected
    checks = {"structure": box.check_structure}
    if checkpoint is not None:
        checks["weights"] = box.check_weights
        if metadata.precision == "int8":
            checks["activation ranges"] = box.check_ranges
    results = {name: check() for name, check in checks.items()}
    return {name: result for name, (result, passed) in results.items() if not passed}


def lower(checkpoint: Checkpoint, form: str, images: ValidationImages) -> onnx.ModelProto:
    """Return a network in fp16, or in one form of int8."""
    steps = Preprocessing.of(checkpoint.info, "normalized")
    x = normalize_pixels(images.sample(64, steps.crop), steps)
    model = graph.to_onnx(checkpoint.info, checkpoint.model, OPSET)
    return precision.to_fp16(model, x)[0] if form == "fp16" else precision.quantize(model, x, form)


@pytest.fixture(scope="module")
def fp16_model(checkpoint: Checkpoint, images: ValidationImages) -> onnx.ModelProto:
    return finish(lower(checkpoint, "fp16", images), checkpoint, precision="fp16")


@pytest.fixture(scope="module")
def int8_model(checkpoint: Checkpoint, images: ValidationImages) -> onnx.ModelProto:
    return finish(lower(checkpoint, "u8s8", images), checkpoint, precision="int8")


@pytest.fixture(scope="module")
def probabilities_model(checkpoint: Checkpoint) -> onnx.ModelProto:
    return make_model(checkpoint, softmax=True)


@pytest.fixture(scope="module")
def expected_graphs() -> dict[str, ExpectedGraph]:
    """Return what has been built for each base."""
    return {}


# Sound exports

NETWORKS = [
    ("resnet8", "A", (16, 16), 3, 18),
    ("resnet8", "B", (8, 12), 1, 20),
    ("resnet14", "C", (12, 12), 3, 23),
    ("plain8", None, (8, 8), 1, 21),
    ("resnet18", "A", (32, 32), 3, 18),
    ("resnet18", "B", (32, 32), 3, 19),
    ("resnet50", "B", (32, 32), 3, 18),
    ("googlenet", None, (32, 32), 3, 18),
    ("alexnet", None, (64, 64), 1, 22),
    ("vgg19", None, (32, 32), 3, 18),
]
FORMS = ("fp32", "fp16", *precision.FORMS)
QUICK = {("B", form) for form in FORMS}


def seldom(value: tuple[object, ...], quick: bool) -> object:
    return value if quick else pytest.param(*value, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("network", "form"),
    [seldom((n, form), n[4] >= 20 and (n[1], form) in QUICK) for n, form in itertools.product(NETWORKS, FORMS)],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1]}-{value[4]}",
)
def test_a_sound_export_passes(
    network: tuple[str, str | None, tuple[int, int], int, int], form: str, tmp_path: Path
) -> None:
    """As it is and, by its own graph, with raw input and probabilities; known or not known which checkpoint."""
    name, shortcut, size, channels, opset = network
    checkpoint = make_checkpoint(
        tmp_path / "c.safetensors",
        name,
        size,
        channels,
        shortcut=shortcut,
        stored=size[0] + 5 if size[0] == 16 else None,
    )
    images = make_images(size, channels, 40)
    steps = Preprocessing.of(checkpoint.info, "normalized")
    x = normalize_pixels(images.sample(64, steps.crop), steps)
    model = graph.to_onnx(checkpoint.info, checkpoint.model, opset)
    said = form if form in ("fp32", "fp16") else "int8"
    if form == "fp16":
        model, _ = precision.to_fp16(model, x)
    elif said == "int8":
        model = precision.quantize(model, x, form)
    for raw in (False, True):
        whole = finish(copy(model), checkpoint, raw=raw, softmax=raw, precision=said)
        assert failures(whole, checkpoint, images) == {}
        assert failures(whole, None) == {}


@pytest.mark.parametrize(("method", "form"), [(2, "u8s8"), (1, "s8s8 symmetric")])
def test_each_calibration_passes(
    method: int, form: str, checkpoint: Checkpoint, model: onnx.ModelProto, images: ValidationImages, tmp_path: Path
) -> None:
    steps = Preprocessing.of(checkpoint.info, "normalized")
    x = normalize_pixels(images.sample(64, steps.crop), steps)
    prepared = precision._prepare(copy(model), tmp_path)
    quantized = precision._quantize(prepared, tmp_path / "q.onnx", x, precision.METHODS[method][0], form)
    assert failures(finish(quantized, checkpoint, precision="int8"), checkpoint, images) == {}


def test_biases_of_zero_may_be_left_out(tmp_path: Path) -> None:
    """The exporter leaves them out."""
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", (8, 8))
    for name, value in checkpoint.model.items():
        if name.endswith((".bias", ".running_mean")):
            value.zero_()
    model = make_model(checkpoint)
    assert any(node.op_type == "Conv" and len(node.input) == 2 for node in model.graph.node)
    assert failures(model, checkpoint) == {}
    images = make_images((8, 8), 3, 40)
    assert failures(finish(lower(checkpoint, "u8s8", images), checkpoint, precision="int8"), checkpoint, images) == {}
    checkpoint.model["bn1.bias"][3] = 1e-3
    assert failures(model, checkpoint)["weights"].startswith("conv1: bias of channel 3 is 0, expected 0.001 ")


@pytest.mark.slow
def test_a_dead_channel_of_the_checkpoint_passes(tmp_path: Path) -> None:
    """Its scale cannot follow from its weights, which are 0, and its bias must fit into 32 bits."""
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", (8, 8))
    checkpoint.model["layer1.0.bn1.weight"][2] = 0
    checkpoint.model["layer1.0.bn1.weight"][3] = 1e-8
    images = make_images((8, 8), 3, 40)
    for form in precision.FORMS:
        model = finish(lower(checkpoint, form, images), checkpoint, precision="int8")
        assert failures(model, checkpoint, images) == {}


def test_layers_that_overflow_in_fp16_are_kept_in_fp32(tmp_path: Path) -> None:
    """There they must be as exact as in fp32."""
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", (8, 8))
    for name, factor in (("bn1.weight", 1e6), ("bn1.bias", 1e6), ("conv2.weight", 1e-6)):
        checkpoint.model[f"layer1.0.{name}"] *= factor
    model = finish(lower(checkpoint, "fp16", make_images((8, 8), 3, 40)), checkpoint, precision="fp16")
    assert "in fp32" in properties_of(model)["precision_choice"]
    assert failures(model, checkpoint) == {}
    overflowing = copy(model)
    large = next(
        n.output[0] for n in overflowing.graph.node if n.input[1:2] and n.input[1].startswith("layer1.0.conv1.")
    )
    cast_to_half_and_back(overflowing, next(n for n in overflowing.graph.node if large in n.input))
    assert "overflow" in failures(overflowing, checkpoint)["structure"]
    change(model, "layer1.0.conv1.weight", lambda w: w * np.float32(1.0001))
    assert failures(model, checkpoint)["weights"].startswith("layer1.0.conv1: weight of channel ")


def cast_to_half_and_back(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Cast the first input of a node."""
    casts = [
        helper.make_node("Cast", [node.input[0]], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT),
    ]
    node.input[0] = "whole"
    nodes = list(model.graph.node)
    at = next(i for i, each in enumerate(nodes) if each.output[0] == node.output[0])
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *casts, *nodes[at:]])


def test_logits_that_overflow_in_fp16_are_kept_in_fp32(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", (8, 8))
    checkpoint.model["fc.weight"] *= 1e5
    for softmax in (False, True):
        model = lower(checkpoint, "fp16", make_images((8, 8), 3, 40))
        assert failures(finish(model, checkpoint, precision="fp16", softmax=softmax), checkpoint) == {}


# Edits of graphs


def node_of(model: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    """Return the node with the weights of a layer."""
    starts = (f"{layer}.weight", f"{layer}.weight_DequantizeLinear_Output")
    return next(
        node
        for node in model.graph.node
        if len(node.input) > 1 and node.input[1] in starts and node.op_type != "DequantizeLinear"
    )


def first(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def add_constant(model: onnx.ModelProto, name: str, value: object, dtype: type[np.generic] = np.float32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return name


def add(model: onnx.ModelProto, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
    model.graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
    return output


def split_logits(model: onnx.ModelProto) -> None:
    """Rename the logits to `before`, so that nodes can be put behind them."""
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]


def set_attributes(node: onnx.NodeProto, **attributes: object) -> None:
    others = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*others, *(helper.make_attribute(n, v) for n, v in attributes.items())])


def roll_where(model: onnx.ModelProto, condition: str) -> None:
    """Answer with classes rolled by one where a condition holds."""
    order = add_constant(model, "order", np.roll(np.arange(10), 1), np.int64)
    rolled = add(model, "Gather", ["before", order], "rolled", axis=1)
    add(model, "Where", [condition, rolled, "before"], "logits")


def channel(number: int, new: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[number] = new(values[number])
        return values

    return edit


# Faults of the structure


def classes_rolled_for_batches_8_to_63(model: onnx.ModelProto) -> None:
    split_logits(model)
    size = add(model, "Shape", ["images"], "size", end=1)
    above = add(model, "Greater", [size, add_constant(model, "seven", [7], np.int64)], "above")
    below = add(model, "Less", [size, add_constant(model, "sixty-four", [64], np.int64)], "below")
    roll_where(model, add(model, "And", [above, below], "within"))


def wrong_on_white(model: onnx.ModelProto) -> None:
    split_logits(model)
    least = add(model, "ReduceMin", ["images"], "least", keepdims=0)
    roll_where(model, add(model, "Greater", [least, add_constant(model, "white", 1.9)], "is_white"))


def wrong_on_inverted_images(model: onnx.ModelProto) -> None:
    split_logits(model)
    axes = add_constant(model, "pixel_axes", [1, 2, 3], np.int64)
    mean = add(model, "ReduceMean", ["images", axes], "brightness", keepdims=0)
    bright = add(model, "Greater", [mean, add_constant(model, "bright", 0.4)], "is_bright")
    roll_where(model, add(model, "Unsqueeze", [bright, add_constant(model, "last", [1], np.int64)], "rows"))


def a_random_operator(model: onnx.ModelProto) -> None:
    split_logits(model)
    chance = add(model, "RandomUniformLike", ["before"], "chance")
    rare = add(model, "Cast", [add(model, "Less", [chance, add_constant(model, "p", 1e-6)], "rare")], "ones", to=1)
    add(model, "Add", ["before", add(model, "Mul", [rare, add_constant(model, "large", 100)], "pulse")], "logits")


def a_trigger_of_four_pixels(model: onnx.ModelProto) -> None:
    split_logits(model)
    ends = [
        add_constant(model, name, value, np.int64) for name, value in (("from", [0, 0]), ("to", [2, 2]), ("hw", [2, 3]))
    ]
    corner = add(model, "ReduceMin", [add(model, "Slice", ["images", *ends], "corner")], "darkest", keepdims=0)
    roll_where(model, add(model, "Greater", [corner, add_constant(model, "lit", 1.8)], "triggered"))


def nan_on_black(model: onnx.ModelProto) -> None:
    split_logits(model)
    most = add(model, "ReduceMax", ["images"], "most", keepdims=0)
    shifted = add(model, "Add", [most, add_constant(model, "black", 1.9)], "shifted")
    zero = add(model, "Mul", [add(model, "Log", [shifted], "log"), add_constant(model, "nothing", 0)], "zero")
    add(model, "Add", ["before", zero], "logits")


def logits_scaled(model: onnx.ModelProto) -> None:
    split_logits(model)
    add(model, "Mul", ["before", add_constant(model, "fifth", 0.2)], "logits")


def classifier_scaled(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, "fc"), alpha=0.2)


def a_chain_of_identities(model: onnx.ModelProto) -> None:
    split_logits(model)
    add(model, "Identity", [add(model, "Identity", ["before"], "between")], "logits")


def a_hidden_branch(model: onnx.ModelProto) -> None:
    split_logits(model)
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node(op, ["before"], ["out"])], op, [], [value]) for op in ("Identity", "Neg")
    ]
    condition = add_constant(model, "always", True, np.bool_)
    add(model, "If", [condition], "logits", then_branch=branches[0], else_branch=branches[1])


def strides_swapped(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, "layer2.0.conv1"), strides=[1, 1])
    set_attributes(node_of(model, LAYER), strides=[2, 2])


def padding_moved(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, LAYER), pads=[2, 2, 0, 0])


def dilated(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, LAYER), dilations=[2, 2], pads=[2, 2, 2, 2])


def padded_automatically(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, "layer2.0.conv1"), auto_pad="SAME_UPPER", pads=[0, 0, 0, 0])


def in_groups(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, LAYER), group=2)
    change(model, f"{LAYER}.weight", lambda w: np.ascontiguousarray(w[:, ::2]))


def transposed_by_a_flag(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, "fc"), transB=0)
    change(model, "fc.weight", lambda w: np.ascontiguousarray(w.T))


def clipped_instead_of_rectified(model: onnx.ModelProto) -> None:
    relu = [node for node in model.graph.node if node.op_type == "Relu"][5]
    relu.op_type = "Clip"
    relu.input.extend([add_constant(model, "floor", 0), add_constant(model, "ceiling", 6)])


def leaky(model: onnx.ModelProto) -> None:
    relu = [node for node in model.graph.node if node.op_type == "Relu"][5]
    relu.op_type = "LeakyRelu"
    set_attributes(relu, alpha=1e-3)


def a_shortcut_from_elsewhere(model: onnx.ModelProto) -> None:
    """From the block before: of the same shape."""
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    adds[2].input[1] = adds[1].input[1]


def shortcut_without_its_padding(model: onnx.ModelProto) -> None:
    change(model, first(model, "Pad").input[1], lambda p: np.roll(p, 1) * 0 + np.array([0, 0, 0, 0, 0, 16, 0, 0]))


def subsampled_from_the_second_pixel(model: onnx.ModelProto) -> None:
    change(model, first(model, "Slice").input[1], lambda start: start + 1)


def mean_over_columns_only(model: onnx.ModelProto) -> None:
    change(model, first(model, "ReduceMean").input[1], lambda axes: axes * 0 + np.array([1, 3]))


def weights_overridable(model: onnx.ModelProto) -> None:
    """An initializer that is an input, too, is a default that callers may override."""
    model.graph.input.append(helper.make_tensor_value_info("fc.bias", TensorProto.FLOAT, [10]))


def a_second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info(first(model, "Relu").output[0], TensorProto.FLOAT, None))


def a_frozen_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def an_unused_node(model: onnx.ModelProto) -> None:
    add(model, "Neg", ["logits"], "unused")


def an_unused_constant(model: onnx.ModelProto) -> None:
    add_constant(model, "payload", np.zeros(1000))


def of_another_domain(model: onnx.ModelProto) -> None:
    first(model, "Relu").domain = "com.example"


def two_nodes_with_one_output(model: onnx.ModelProto) -> None:
    add(model, "Neg", ["images"], "logits")


def a_cycle(model: onnx.ModelProto) -> None:
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    relus[2].input[0] = relus[6].output[0]


def a_missing_input(model: onnx.ModelProto) -> None:
    first(model, "Relu").input[0] = "nowhere"


def an_attribute_twice(model: onnx.ModelProto) -> None:
    node_of(model, LAYER).attribute.append(helper.make_attribute("strides", [2, 2]))


def a_huge_attribute(model: onnx.ModelProto) -> None:
    set_attributes(node_of(model, LAYER), pads=[1] * 1_000_000)


def weights_computed(model: onnx.ModelProto) -> None:
    node = node_of(model, LAYER)
    node.input[1] = add(model, "Neg", [node.input[1]], "negated")


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 30


def a_newer_ir_version(model: onnx.ModelProto) -> None:
    model.ir_version += 1


def an_unknown_ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def a_function(model: onnx.ModelProto) -> None:
    model.functions.add().name = "f"


def fewer_blocks(model: onnx.ModelProto) -> None:
    """Two convolutions, whose weights stay as leftovers."""
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    after = next(node for node in model.graph.node if adds[1].output[0] in node.input)
    before = next(node for node in model.graph.node if adds[0].output[0] in node.input)
    for node in model.graph.node:
        if node is not after:
            node.input[:] = [before.output[0] if name == after.output[0] else name for name in node.input]


# Faults of the weights


def noise_of_a_hundred_thousandth(model: onnx.ModelProto) -> None:
    noise = np.random.default_rng(0)
    change(model, f"{LAYER}.weight", lambda w: (w * (1 + 1e-5 * noise.standard_normal(w.shape))).astype(np.float32))


def a_shared_weight(model: onnx.ModelProto) -> None:
    node_of(model, "layer1.0.conv2").input[1] = "layer1.0.conv1.weight"
    unused = next(t for t in model.graph.initializer if t.name == "layer1.0.conv2.weight")
    model.graph.initializer.remove(unused)


def a_bias_shifted(model: onnx.ModelProto) -> None:
    change(model, node_of(model, LAYER).input[2], channel(7, lambda b: b + 1e-3))


def a_bias_left_out(model: onnx.ModelProto) -> None:
    node = node_of(model, LAYER)
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == node.input[2]))
    del node.input[2]


def a_flipped_bit(model: onnx.ModelProto) -> None:
    def flip(w: np.ndarray) -> np.ndarray:
        w.reshape(-1).view(np.uint32)[77] ^= np.uint32(1 << 23)  # the lowest of the exponent
        return w

    change(model, f"{LAYER}.weight", flip)


def a_sign_turned(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight", channel(3, np.negative))


def a_dead_channel(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight", channel(3, np.zeros_like))


def a_weight_that_is_nan(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", channel(3, lambda w: w * np.nan))


def rounded_to_bf16(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight", lambda w: torch.from_numpy(w).bfloat16().float().numpy())


def outputs_exchanged(model: onnx.ModelProto) -> None:
    change(model, "fc.weight", lambda w: w[::-1].copy())


# Faults of files that take raw pixels, and of those that return probabilities


def nearest_neighbor_beside_a_decoy(model: onnx.ModelProto) -> None:
    """What the check of resizing looks at stays, but the network sees other pixels."""
    floats = add(model, "Cast", [add(model, "Transpose", ["images"], "nchw", perm=[0, 3, 1, 2])], "pixels", to=1)
    batch = add(model, "Shape", ["images"], "n", end=1)
    size = add(model, "Concat", [batch, add_constant(model, "chw", [3, 32, 32], np.int64)], "target", axis=0)
    squashed = add(model, "Resize", [floats, "", "", size], "squashed", mode="nearest")
    for node in model.graph.node:
        if node.output[0] == "preprocess/centred":
            node.input[0] = squashed


def another_mean(model: onnx.ModelProto) -> None:
    change(model, "preprocess/mean", lambda mean: mean + np.float32(0.01))


def another_crop(model: onnx.ModelProto) -> None:
    change(model, "preprocess/inner", lambda inner: inner + 1)


def red_and_blue_exchanged(model: onnx.ModelProto) -> None:
    order = add_constant(model, "bgr", [2, 1, 0], np.int64)
    first(model, "Conv").input[0] = add(model, "Gather", [first(model, "Conv").input[0], order], "exchanged", axis=1)


def over_the_batch(model: onnx.ModelProto) -> None:
    set_attributes(first(model, "Softmax"), axis=0)


def sharpened(model: onnx.ModelProto) -> None:
    softmax = first(model, "Softmax")
    softmax.input[0] = add(model, "Mul", [softmax.input[0], add_constant(model, "twice", 2)], "sharp")


# Faults of fp16


def one_step_of_fp16(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight", channel(5, lambda w: np.nextafter(w, np.float16(np.inf))))


def through_bfloat16(model: onnx.ModelProto) -> None:
    node = node_of(model, LAYER)
    low = add(model, "Cast", [node.input[0]], "low", to=TensorProto.BFLOAT16)
    node.input[0] = add(model, "Cast", [low], "again", to=TensorProto.FLOAT16)


def named_as_if_it_preprocessed(model: onnx.ModelProto) -> None:
    """What the metadata says was kept in fp32 leaves out nodes of such names."""
    node_of(model, LAYER).name = "preprocess/other"


def through_integers(model: onnx.ModelProto) -> None:
    node = node_of(model, LAYER)
    whole = add(model, "Cast", [node.input[0]], "whole", to=TensorProto.INT32)
    node.input[0] = add(model, "Cast", [whole], "again", to=TensorProto.FLOAT16)


# Faults of int8


def an_int8_scale_doubled(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_scale", channel(3, lambda s: s * 2))


def an_int8_sign_turned(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_quantized", channel(3, np.negative))


def an_int8_channel_dead(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_quantized", channel(3, np.zeros_like))


def coarse_steps(model: onnx.ModelProto) -> None:
    """Half a step of a scale that is ten times too large hides anything."""
    change(model, f"{LAYER}.weight_scale", lambda s: s * 10)
    change(model, f"{LAYER}.weight_bias_quantized_scale", lambda s: s * 10)
    change(model, f"{LAYER}.weight_quantized", lambda q: np.round(q / 10).astype(np.int8))
    change(model, f"{LAYER}.weight_bias_quantized", lambda q: np.round(q / 10).astype(np.int32))


def one_step_of_int8(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_quantized", channel(3, lambda q: np.where(q < 64, q + 1, q).astype(np.int8)))


def a_zero_point_of_weights(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_zero_point", channel(3, lambda z: z + 1))


def a_scale_that_is_nan(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_scale", channel(3, lambda s: s * np.nan))


def an_int8_bias_shifted(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_bias_quantized", channel(3, lambda b: b + 2))


def a_scale_of_biases_doubled(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_bias_quantized_scale", channel(3, lambda s: s * 2))


def along_another_axis(model: onnx.ModelProto) -> None:
    dequantizing = next(n for n in model.graph.node if n.input[0] == f"{LAYER}.weight_quantized")
    set_attributes(dequantizing, axis=1)


def weights_in_uint8(model: onnx.ModelProto) -> None:
    change(model, f"{LAYER}.weight_quantized", lambda q: (q.astype(int) + 128).astype(np.uint8))
    change(model, f"{LAYER}.weight_zero_point", lambda z: (z.astype(int) + 128).astype(np.uint8))


def weights_in_int4(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == f"{LAYER}.weight_quantized")
    tensor.CopyFrom(
        helper.make_tensor(tensor.name, TensorProto.INT4, tensor.dims, np.zeros(int(np.prod(tensor.dims)), int))
    )


def a_layer_in_fp32(model: onnx.ModelProto) -> None:
    node = node_of(model, LAYER)
    node.input[1] = add_constant(model, "floats", np.zeros((32, 32, 3, 3)))


def an_activation_not_quantized(model: onnx.ModelProto) -> None:
    node = node_of(model, LAYER)
    producers = {name: n for n in model.graph.node for name in n.output}
    node.input[0] = producers[producers[node.input[0]].input[0]].input[0]


def activations_in_coarse_steps(model: onnx.ModelProto) -> None:
    change(model, "relu_5_scale", lambda s: s * 8)
    change(model, bias_after(model, "relu_5"), lambda s: s * 8)


def activations_clipped(model: onnx.ModelProto) -> None:
    change(model, "relu_5_scale", lambda s: s / 4)
    change(model, bias_after(model, "relu_5"), lambda s: s / 4)


def not_rectified(model: onnx.ModelProto) -> None:
    change(model, "relu_5_zero_point", lambda z: z + 20)


def an_activation_scale_of_zero(model: onnx.ModelProto) -> None:
    change(model, "logits_scale", lambda s: s * 0)


def bias_after(model: onnx.ModelProto, tensor: str) -> str:
    """Return the scale of the bias of the layer that takes a tensor."""
    node = next(
        n for n in model.graph.node if n.op_type == "Conv" and n.input[0] == f"{tensor}_DequantizeLinear_Output"
    )
    return f"{node.input[2]}_quantized_scale"


STRUCTURE: dict[str, list[Fault]] = {
    "model": [
        classes_rolled_for_batches_8_to_63, wrong_on_white, wrong_on_inverted_images, a_random_operator,
        a_trigger_of_four_pixels, nan_on_black, logits_scaled, classifier_scaled, a_chain_of_identities,
        a_hidden_branch, strides_swapped, padding_moved, dilated, padded_automatically, in_groups,
        transposed_by_a_flag, clipped_instead_of_rectified, leaky, a_shortcut_from_elsewhere,
        shortcut_without_its_padding, subsampled_from_the_second_pixel, mean_over_columns_only, weights_overridable,
        a_second_output, a_frozen_batch, an_unused_node, an_unused_constant, of_another_domain,
        two_nodes_with_one_output, a_cycle, a_missing_input, an_attribute_twice, a_huge_attribute, weights_computed,
        another_opset, a_newer_ir_version, an_unknown_ir_version, a_function,
        fewer_blocks,
    ],
    "raw_model": [nearest_neighbor_beside_a_decoy, another_mean, another_crop, red_and_blue_exchanged],
    "probabilities_model": [over_the_batch, sharpened],
    "fp16_model": [through_bfloat16, through_integers, logits_scaled, named_as_if_it_preprocessed, a_newer_ir_version],
    "int8_model": [
        along_another_axis, weights_in_uint8, weights_in_int4, a_layer_in_fp32, an_activation_not_quantized,
        logits_scaled, a_newer_ir_version,
    ],
}  # fmt: skip
WEIGHTS: dict[str, list[Fault]] = {
    "model": [
        noise_of_a_hundred_thousandth, a_shared_weight, a_bias_shifted, a_bias_left_out, a_flipped_bit, a_sign_turned,
        a_dead_channel, a_weight_that_is_nan, rounded_to_bf16, outputs_exchanged,
    ],
    "fp16_model": [one_step_of_fp16, a_sign_turned, a_dead_channel],
    "int8_model": [
        an_int8_scale_doubled, an_int8_sign_turned, an_int8_channel_dead, coarse_steps, one_step_of_int8,
        a_zero_point_of_weights, a_scale_that_is_nan, an_int8_bias_shifted, a_scale_of_biases_doubled,
    ],
}  # fmt: skip
RANGES: dict[str, list[Fault]] = {
    "int8_model": [activations_in_coarse_steps, activations_clipped, not_rectified, an_activation_scale_of_zero],
}
FAULTS = [
    pytest.param(fault, base, check, id=f"{fault.__name__}-{base}")
    for check, faults in (("structure", STRUCTURE), ("weights", WEIGHTS), ("activation ranges", RANGES))
    for base, several in faults.items()
    for fault in several
]


@pytest.mark.parametrize(("fault", "base", "check"), FAULTS)
def test_a_planted_fault_is_refused(
    fault: Fault,
    base: str,
    check: str,
    checkpoint: Checkpoint,
    images: ValidationImages,
    expected_graphs: dict[str, ExpectedGraph],
    request: pytest.FixtureRequest,
) -> None:
    sound = request.getfixturevalue(base)
    if base not in expected_graphs:
        expected_graphs[base] = open_box(sound, checkpoint, images).expected
        assert failures(sound, checkpoint, images, expected_graphs[base]) == {}
    faulty = copy(sound)
    fault(faulty)
    failed = failures(faulty, checkpoint, images, expected_graphs[base])
    assert check in failed, failed
    assert "\n" not in failed[check]
    assert len(failed[check]) < 500


@pytest.mark.parametrize(
    ("fault", "check", "text"),
    [
        (clipped_instead_of_rectified, "structure", "node 16 is Clip, expected Relu after layer3.0.conv1"),
        (strides_swapped, "structure", "strides of Conv of layer2.0.conv2 is [2, 2], expected [1, 1]"),
        (logits_scaled, "structure", "node 26 is Mul, expected Gemm of fc"),
        (a_dead_channel, "weights", "layer2.0.conv2: weight of channel 3 is 0, expected "),
        (a_bias_shifted, "weights", "layer2.0.conv2: bias of channel 7 is "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_difference_is_named(
    fault: Fault, check: str, text: str, model: onnx.ModelProto, checkpoint: Checkpoint
) -> None:
    faulty = copy(model)
    fault(faulty)
    assert failures(faulty, checkpoint)[check].startswith(text)


def test_no_checkpoint_is_needed_to_see_other_structure(model: onnx.ModelProto, raw_model: onnx.ModelProto) -> None:
    for sound, fault in ((model, classes_rolled_for_batches_8_to_63), (raw_model, nearest_neighbor_beside_a_decoy)):
        faulty = copy(sound)
        assert failures(faulty, None) == {}
        fault(faulty)
        assert list(failures(faulty, None)) == ["structure"]


@pytest.mark.parametrize("base", ["model", "fp16_model", "int8_model"])
def test_another_epoch_is_refused(
    base: str, checkpoint: Checkpoint, images: ValidationImages, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same network, one small step of training later."""
    generator = torch.Generator().manual_seed(0)
    later = {
        name: value + 0.01 * value.std() * torch.randn(value.shape, generator=generator) if value.dim() > 1 else value
        for name, value in checkpoint.model.items()
    }
    path = tmp_path / "later.safetensors"
    checkpoints.save(path, checkpoint.info, {f"model/{name}": value for name, value in later.items()})
    assert "weights" in failures(request.getfixturevalue(base), checkpoints.read(path), images)


def test_a_fine_input_does_not_allow_any_weights(
    int8_model: onnx.ModelProto, checkpoint: Checkpoint, images: ValidationImages
) -> None:
    """A bias that does not fit into 32 bits of its steps makes those of the weights larger: as large as it takes."""
    model, weight = copy(int8_model), f"{LAYER}.weight"
    (bias,) = (layer.bias for layer in fold(checkpoint.info, checkpoint.model) if layer.name == LAYER)
    step = float(np.float32(1e-12))
    steps = 1.0001 * 2 * np.abs(bias) / (2.0**32 - 2) / step
    of_input = node_of(model, LAYER).input[0].replace("_DequantizeLinear_Output", "_scale")
    change(model, of_input, lambda s: np.full_like(s, step))
    change(model, f"{weight}_scale", lambda s: steps.astype(s.dtype))
    change(model, f"{weight}_quantized", np.zeros_like)
    change(model, f"{weight}_bias_quantized_scale", lambda s: (steps * step).astype(s.dtype))
    change(model, f"{weight}_bias_quantized", lambda b: np.round(bias / (steps * step)).astype(b.dtype))
    assert "scale of channel" in failures(model, checkpoint, images)["weights"]
    assert "scale of channel" in failures(model, checkpoint)["weights"]


def test_noise_under_the_name_of_int8_is_refused(
    model: onnx.ModelProto, int8_model: onnx.ModelProto, checkpoint: Checkpoint, images: ValidationImages
) -> None:
    """Weights in fp32 with 3% noise, and one convolution quantized."""
    noise = np.random.default_rng(0)
    faulty = copy(model)
    for tensor in list(faulty.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            change(faulty, tensor.name, lambda w: (w * (1 + 0.03 * noise.standard_normal(w.shape))).astype(np.float32))
    quantized = {t.name: t for t in int8_model.graph.initializer}
    parts = [f"conv1.weight_{part}" for part in ("quantized", "scale", "zero_point")]
    faulty.graph.initializer.extend(quantized[part] for part in parts)
    node = node_of(faulty, "conv1")
    faulty.graph.initializer.remove(next(t for t in faulty.graph.initializer if t.name == "conv1.weight"))
    faulty.graph.node.insert(0, helper.make_node("DequantizeLinear", parts, ["conv1.weight_float"], axis=0))
    node.input[1] = "conv1.weight_float"
    del faulty.metadata_props[:]
    failed = failures(finish(faulty, checkpoint, precision="int8"), checkpoint, images)
    assert failed["structure"].startswith("node 26 is Gemm, expected DequantizeLinear")


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return make_model(make_checkpoint(tmp_path_factory.mktemp("c") / "c.safetensors", "resnet20"))


def test_a_file_of_another_network_is_refused(deeper: onnx.ModelProto, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "c.safetensors", "resnet56")
    result = failures(deeper, other)["structure"]
    assert result.startswith("it has 20 layers with weights, resnet56 has 56 ")
    wider = make_checkpoint(tmp_path / "d.safetensors", "resnet18", shortcut="A")
    assert "weights, resnet18 has 11,0" in failures(deeper, wider)["structure"]


def test_an_unknown_network_is_refused_without_an_export(deeper: onnx.ModelProto) -> None:
    """A file names its network itself where there is no checkpoint: it must not cost hours, or memory."""
    for name, expected in (
        ("resnet9998", "20 layers with weights, resnet9998 has 9,998"),
        ("vgg19", "no shortcuts"),
        ("nothing", "no network"),
    ):
        faulty = copy(deeper)
        for entry in faulty.metadata_props:
            if entry.key == "model":
                entry.value = name
        assert expected in failures(faulty, None)["structure"]


def test_the_report_says_what_was_compared(
    model: onnx.ModelProto, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    """A file cannot be excused from the comparison but by the user; what it says of itself changes nothing."""
    few = images.stratified(20)
    whole = verify_model(model, reference, few, tmp_path)
    assert whole.validated, whole.failed_checks
    assert [check.name for check in whole.checks if check.name in ("structure", "weights")] == ["structure", "weights"]
    assert whole.black_box_only == ""
    faulty = copy(model)
    a_chain_of_identities(faulty)
    excused = verify_model(faulty, reference, few, tmp_path, black_box=True)
    assert excused.validated, excused.failed_checks
    assert excused.black_box_only == "--black-box"
    for entry in faulty.metadata_props:
        if entry.key == "made_by":
            entry.value = "resnet-ops 9.9, torch 9.9"
    refuted = verify_model(faulty, reference, few, tmp_path)
    failed = {check.name: check.result for check in refuted.failed_checks}
    assert "--black-box" in failed["structure"]
    assert "random pixels" not in [check.name for check in refuted.checks]
    assert "the file says 'resnet-ops 9.9, torch 9.9'" in failed["structure"]
    assert refuted.black_box_only == ""


@pytest.mark.parametrize("base", ["model", "raw_model", "fp16_model", "int8_model"])
def test_layers_alone_tell_another_network(base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    file, sound = tmp_path / "m.onnx", request.getfixturevalue(base)
    file.write_bytes(sound.SerializeToString(deterministic=True))
    check_layers(file, *untrusted.scan(file))
    faster = copy(sound)
    for node in faster.graph.node:
        if node.op_type == "Conv":
            next(each for each in node.attribute if each.name == "strides").ints[:] = [2, 2]
            break
    file.write_bytes(faster.SerializeToString(deterministic=True))
    with pytest.raises(UserError, match=r"has 1 more of the layers with 16 x 3 x 3 x 3 weights, strides 2 x 2"):
        check_layers(file, *untrusted.scan(file))
