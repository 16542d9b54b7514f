"""Single checks of an exported file: graph, places of nodes, resized pixels, the largest batch that fits.

Which of them are run, and on which images, is in `proof`; probes of what a file computes are in `black_box`, the checks
of its metadata in `metadata_checks`.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnx.shape_inference import infer_shapes

from resnet_ops.data.decode import CropSpec
from resnet_ops.export import budget, graph, pixel_flow, runtime
from resnet_ops.export.black_box import crop_pixels, is_tall, noise
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import ModelMetadata, Precision, Preprocessing
from resnet_ops.export.precision import activation_bytes_per_image
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.training.memory import free_bytes

MAX_BATCH = 4096
RANDOM_OPERATORS = {
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
MEMORY_SHARE = 0.25  # of the free memory that a check may take; of a batch, all intermediate values together
RESIZED_IMAGES = 16
MAX_LEVELS, MEAN_LEVELS = 2, 0.05  # Pillow rounds twice, once for each direction
TALL_MEAN_LEVELS = 0.3  # where Pillow 13 resizes rows first, a quarter is a level off


def check_graph(
    file: Path, model: onnx.ModelProto, metadata: ModelMetadata, opset: int | None, precision: Precision | None
) -> tuple[str, bool]:
    """Check that a file is valid ONNX, with a dynamic batch size, deterministic, and of the form in its metadata.

    Args:
        file: The file.
        model: Its content.
        metadata: Its metadata.
        opset: The opset that was asked for, if that is known.
        precision: The precision that was asked for, if that is known.

    Returns:
        The faults, or what the graph is, and whether it passed.
    """
    onnx.checker.check_model(str(file), full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    actual_opset = opsets.get("", opsets.get("ai.onnx", 0))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    operators = {node.op_type for node in model.graph.node}
    raw = model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    weights, mixed = _weight_precision(model)
    softmax = model.graph.node[-1].op_type == "Softmax"
    random = ", ".join(sorted(operators & RANDOM_OPERATORS))
    return summarize(
        {
            f"opset {actual_opset}, expected {opset}": opset is not None and actual_opset != opset,
            f"batch size fixed at {batch.dim_value}": not batch.dim_param,
            "BatchNorm not folded": "BatchNormalization" in operators,
            f"metadata says {metadata.input} input, the graph takes other input": raw != (metadata.input == "raw"),
            f"metadata says {metadata.precision}, weights are {weights}": weights != metadata.precision,
            f"precision {metadata.precision}, expected {precision}": precision not in (None, metadata.precision),
            f"{mixed} convolutions are not in {weights}": weights == "int8" and mixed > 0,
            f"metadata says {metadata.output}, the graph ends otherwise": softmax
            != (metadata.output == "probabilities"),
            f"its outputs are random ({random})": bool(random),
        },
        f"opset {actual_opset}, {len(model.graph.node)} nodes, dynamic batch",
    )


def size_fault(model: onnx.ModelProto, metadata: ModelMetadata, checkpoint: Checkpoint | None) -> str:
    """Return how the size of images in the metadata is not the graph's or the checkpoint's; '' if it is."""
    steps = metadata.preprocessing
    size = steps.channels, steps.height, steps.width
    if checkpoint is not None:
        info = checkpoint.info
        own = Preprocessing.of(info, metadata.input)
        if (size, steps.resize) != ((info.channels, info.height, info.width), own.resize):
            trained_on = _sizes((own.channels, own.height, own.width))
            return f"images of {_sizes(size)} in the metadata, {trained_on} in the checkpoint"
    sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    expected = [0, 0, steps.channels] if metadata.input == "raw" else list(size)
    return "" if sides == expected else f"an input of {_sizes(sides)} in the graph, expected {_sizes(expected)}"


def _sizes(sides: Iterable[int]) -> str:
    return " x ".join(str(side) if side else "any" for side in sides)


def check_nodes(file: Path, session: runtime.OnnxSession) -> tuple[str, bool]:
    """Check that all nodes through which pixels flow run on the provider that was asked for.

    Returns:
        The nodes that do not, or how many nodes run where, and whether it passed.
    """
    provider, nodes = session.provider, session.nodes
    name = provider.removesuffix("ExecutionProvider")
    elsewhere = runtime.nodes_elsewhere(nodes, provider)
    misplaced = (
        pixel_flow.misplaced_nodes(pixel_flow.assigned_graph(file, provider), nodes, provider) if elsewhere else []
    )
    if misplaced:
        listed = ", ".join(f"{node.operator} {node.name}" for node in misplaced[:5])
        more = f" and {len(misplaced) - 5} more" if len(misplaced) > 5 else ""
        on = ", ".join(sorted({node.provider.removesuffix("ExecutionProvider") for node in misplaced}))
        return f"{name} requested, {len(misplaced)} nodes on {on}: {listed}{more}", False
    own = session.nodes_by_provider.get(provider, 0)
    rest = "; the others depend on shapes and constants alone" if elsewhere else ""
    return f"{own} of {len(nodes)} on {name}{rest}", own > 0


def summarize(faults: dict[str, bool], passed: str) -> tuple[str, bool]:
    """Return the faults that are present or, without any, what passed; and whether it did."""
    present = [fault for fault, is_present in faults.items() if is_present]
    return "; ".join(present) or passed, not present


def _weight_precision(model: onnx.ModelProto) -> tuple[Precision, int]:
    """Return the lowest precision of the weights of a convolution, and how many have another."""
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    weights = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    precisions: list[Precision] = [
        "int8" if name in quantized else "fp16" if dtypes.get(name) == TensorProto.FLOAT16 else "fp32"
        for name in weights
    ]
    lowest: Precision = "int8" if "int8" in precisions else "fp16" if "fp16" in precisions else "fp32"
    return lowest, len(precisions) - precisions.count(lowest)


def check_resizing(
    file: Path, provider: str, metadata: ModelMetadata, images: ValidationImages | None
) -> tuple[str, bool]:
    """Compare the graph's resized and cropped pixels with Pillow's, for random and real images of many sizes.

    Returns:
        The largest and the mean difference in levels of 255, and whether they are within rounding.
    """
    model = onnx.load(str(file), load_external_data=True)
    steps = metadata.preprocessing
    shape: list[str | int | None] = ["batch", steps.channels, steps.height, steps.width]
    # Files of version 0.1 have them as uint8.
    types = {value.name: value.type.tensor_type.elem_type for value in infer_shapes(model).graph.value_info}
    del model.graph.output[:]
    if graph.PIXELS not in types:
        return f"there are no {graph.PIXELS}", False
    model.graph.output.append(helper.make_tensor_value_info(graph.PIXELS, types[graph.PIXELS], shape))
    session = runtime.load(model.SerializeToString(), provider)
    samples = noise(steps)
    if images is not None:
        samples += images.at_original_size(RESIZED_IMAGES, steps.crop)
    worst, means, tall_means = 0.0, list[float](), list[float]()
    for image in samples:
        (pixels,) = session.run(image[None])
        if not np.isfinite(pixels).all():
            return f"not finite, size {image.shape[:2]}", False
        difference = np.abs(pixels.transpose(1, 2, 0).astype(np.float64) - crop_pixels(image, steps.crop))
        worst = max(worst, float(difference.max()))
        (tall_means if is_tall(image) else means).append(float(difference.mean()))
    mean, sizes = float(np.mean(means + tall_means)), len({image.shape for image in samples})
    return (
        f"at most {worst:g} level{'' if worst == 1 else 's'}, mean {mean:.4f}, {sizes} sizes",
        worst <= MAX_LEVELS
        and sum(means) <= MEAN_LEVELS * len(means)
        and max(tall_means, default=0.0) <= TALL_MEAN_LEVELS,
    )


def memory_to_use(device: torch.device) -> int:
    """Return the bytes of a device's free memory that a check may take."""
    return int(MEMORY_SHARE * free_bytes(device))


def fitting_batch(model: onnx.ModelProto, crop: CropSpec, provider: str) -> int:
    """Return how many images surely fit into memory at once, at least one."""
    device = torch.device("cuda" if provider in runtime.ON_GPU and torch.cuda.is_available() else "cpu")
    image_bytes = activation_bytes_per_image(model) + 8 * int(np.prod(crop.shape))
    return max(1, memory_to_use(device) // image_bytes)


def largest_batch(model: onnx.ModelProto, fitting: int, provider: str) -> int:
    """Return the largest power of two of images, up to `MAX_BATCH` and what fits into memory, within the budget."""
    fitting = min(MAX_BATCH, fitting)
    if provider not in runtime.ON_GPU:
        fitting = budget.images_within(budget.ONNX_CPU * budget.LARGEST_BATCH_SHARE, model, fitting)
    return 1 << (fitting.bit_length() - 1)
