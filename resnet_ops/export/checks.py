"""What can be seen of an exported file without running it: is it what was asked for, and what it says it is?"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image

from resnet_ops.data.decode import CropSpec, decode
from resnet_ops.export import graph, runtime
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import ModelMetadata, Precision, Preprocessing
from resnet_ops.export.precision import activation_bytes_per_image
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.training.memory import free_bytes

LARGEST_BATCH = 4096
SHARE = 0.25  # of the free memory that the largest batch may take, all intermediate values together


def check_file(file: Path, model: onnx.ModelProto, metadata: ModelMetadata, opset: int | None) -> tuple[str, bool]:
    """Whether it is sound ONNX of the operator set asked for, takes any batch, and is of the precision it claims."""
    onnx.checker.check_model(str(file), full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    found = opsets.get("", opsets.get("ai.onnx", 0))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    operators = {node.op_type for node in model.graph.node}
    raw = model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    faults = {
        f"opset {found}, expected {opset}": opset is not None and found != opset,
        f"batch size fixed at {batch.dim_value}": not batch.dim_param,
        "BatchNorm not folded": "BatchNormalization" in operators,
        f"metadata says {metadata.input} input, the graph takes other input": raw != (metadata.input == "raw"),
        f"metadata says {metadata.precision}, weights are {_precision(model)}": _precision(model) != metadata.precision,
    }
    found_faults = [fault for fault, there in faults.items() if there]
    return "; ".join(found_faults) or f"opset {found}, {len(model.graph.node)} nodes, dynamic batch", not found_faults


def _precision(model: onnx.ModelProto) -> str:
    """The smallest that any convolution has its weights in."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    counts = {"fp32": 0, "fp16": 0, "int8": 0}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        weight = node.input[1]
        if weight in made and made[weight].op_type == "DequantizeLinear":
            counts["int8"] += 1
        else:
            counts["fp16" if kinds.get(weight) == TensorProto.FLOAT16 else "fp32"] += 1
    return "int8" if counts["int8"] else "fp16" if counts["fp16"] else "fp32"


def check_content(metadata: ModelMetadata, checkpoint: Checkpoint) -> tuple[str, bool]:
    """Whether what it says of itself is so of the checkpoint."""
    info = checkpoint.info
    faults = {
        "exported from another checkpoint": metadata.checkpoint_sha256 != checkpoint.sha256,
        "classes or their order differ": metadata.class_names != info.class_names,
        "preprocessing differs": metadata.preprocessing != Preprocessing.of(info, metadata.input),
        f"network is {metadata.model}, expected {info.model}": metadata.model != info.model,
    }
    found = [fault for fault, there in faults.items() if there]
    return "; ".join(found) or "classes, preprocessing, checkpoint", not found


def largest_batch(model: onnx.ModelProto, frame: CropSpec) -> int:
    """The largest power of two of images that surely fits into memory, up to `LARGEST_BATCH`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    each = activation_bytes_per_image(model) + 8 * int(np.prod(frame.shape))
    fitting = max(1, min(LARGEST_BATCH, int(SHARE * free_bytes(device) / each)))
    return 1 << (fitting.bit_length() - 1)


REAL, LEVELS, MEAN_LEVELS = 16, 2, 0.05  # it rounds twice, once for each direction
SIZES = ((1.0, 1.0), (1.0, 1.3), (0.6, 0.5), (2.13, 3.07), (4.5, 1.7), (7.9, 8.1))  # as multiples of what is covered


def compare_resizing(
    file: Path, provider: str, metadata: ModelMetadata, shown: ValidationImages | None
) -> tuple[str, bool]:
    """Compare pixels, after resizing and cutting, of random and real images of many sizes.

    Returns:
        The largest and the mean difference in levels of 255 in words, and whether they are within rounding.
    """
    model = onnx.load(str(file), load_external_data=True)
    steps = metadata.preprocessing
    shape: list[str | int | None] = ["batch", steps.channels, steps.height, steps.width]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(graph.PIXELS, TensorProto.UINT8, shape))
    session = runtime.load(model.SerializeToString(), provider)
    worst, means, images = 0, [], _images(metadata, shown)
    for image in images:
        (found,) = session.run(image[None])
        apart = np.abs(found.transpose(1, 2, 0).astype(int) - _as_pillow(image, metadata).astype(int))
        worst = max(worst, int(apart.max()))
        means.append(float(apart.mean()))
    mean = float(np.mean(means))
    sizes = len({image.shape for image in images})
    return (
        f"at most {worst} level{'' if worst == 1 else 's'}, mean {mean:.4f}, {sizes} sizes",
        worst <= LEVELS and mean <= MEAN_LEVELS,
    )


def _images(metadata: ModelMetadata, shown: ValidationImages | None) -> list[np.ndarray]:
    """Noise, in which nothing about a resize can hide, and real images."""
    steps, rng = metadata.preprocessing, np.random.default_rng(0)
    sides = [[max(1, round(a * b)) for a, b in zip(size, steps.resize, strict=True)] for size in SIZES]
    height, width = steps.resize
    sides += [[height, width + 3], [height + 1, width]]  # half a pixel to spare: to even it is rounded
    made = [rng.integers(0, 256, (*side, steps.channels), np.uint8) for side in sides]
    return made + (shown.of_own_size(REAL, steps.channels) if shown is not None else [])


def _as_pillow(image: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    stored = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(stored, "PNG")
    return decode(stored.getvalue(), metadata.preprocessing.frame)


BINS = 15  # of confidence, as usual since Guo et al. 2017


@dataclass(frozen=True)
class Tolerances:
    """How far apart a file of some precision may be from its checkpoint.

    Args:
        largest: Max |difference| / max |logit|, by provider.
        mean: Mean |difference| / max |logit|.
        agreement: Share of images with the same top class, not counting near ties.
    """

    largest: dict[str, float]
    mean: float
    agreement: float


LIMITS: dict[Precision, Tolerances] = {
    # 20 times a clean export, 40 times less than the smallest fault (TF32, half precision). GPUs sum in another order.
    "fp32": Tolerances({runtime.CPU: 1e-5, runtime.CUDA: 1e-4, runtime.TENSORRT: 1e-3}, 1e-5, 1.0),
    # Weights and activations have 11 bits: 2.3e-3 was measured. One layer's overflow is infinite, or far beyond.
    "fp16": Tolerances(dict.fromkeys((runtime.CPU, runtime.CUDA, runtime.TENSORRT), 1e-2), 2e-3, 0.995),
    # 8 bits: single logits of single images move by 15 %, the mean by 0.5 %. Without calibration it is above 5 %.
    "int8": Tolerances(dict.fromkeys((runtime.CPU, runtime.CUDA, runtime.TENSORRT), 0.5), 2e-2, 0.97),
}


@dataclass(frozen=True)
class Comparison:
    """What both pipelines gave for the same images, (N, classes) float64."""

    torch: np.ndarray
    onnx: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether there is no NaN or infinity on either side: NaN passes most comparisons."""
        return bool(np.isfinite(self.torch).all() and np.isfinite(self.onnx).all())

    @property
    def scale(self) -> float:
        """The largest |logit|."""
        return max(float(np.abs(self.torch).max()), 1e-12)

    @property
    def max_abs(self) -> float:
        """The largest |difference|."""
        return float(np.abs(self.torch - self.onnx).max())

    @property
    def max_rel(self) -> float:
        """The largest |difference|, as a share of the largest |logit|."""
        return self.max_abs / self.scale

    @property
    def mean_rel(self) -> float:
        """The mean |difference|, as a share of the largest |logit|."""
        return float(np.abs(self.torch - self.onnx).mean()) / self.scale

    @property
    def agrees(self) -> np.ndarray:
        """Where the top classes are the same, (N,) bool."""
        return np.asarray(self.torch.argmax(1) == self.onnx.argmax(1))

    def ties(self, rounding: float) -> np.ndarray:
        """Where, (N,) bool, the two largest logits are closer than `rounding` of each tells apart: either is right."""
        if self.torch.shape[1] < 2:
            return np.ones(len(self.torch), bool)
        top = np.partition(self.torch, -2, axis=1)
        return np.asarray(top[:, -1] - top[:, -2] <= 2 * rounding)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, from 0 to 1, of (N, classes) and (N,)."""
    return float((scores.argmax(1) == labels).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): how far confidence is from accuracy, over bins of confidence."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return float(np.abs(gaps).sum() / len(labels))
