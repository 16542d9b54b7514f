"""How many images a proof uses: all of them, or as many as take about a minute.

That is decided by the arithmetic that an image takes, not by a clock: a file is proven on the same images each time,
whatever else the machine does, so that a proof can be repeated and its accuracies compared with those of another.
"""

import contextlib
import re
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import torch

from resnet_ops.data.decode import DecodeError, read_header
from resnet_ops.export import runtime
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.formatting import duration

BUDGET_S = 60.0  # what each of the following takes, roughly
# Where graph and weights are known to be the checkpoint's, images only show that the runtime computes what they say.
WHITE_BOX_SHARE = 1 / 6
# Multiply-adds in float64: two cores without AVX-512 make 10 to 23e9 a second.
FLOAT64_CPU, FLOAT64_GPU, FLOAT64_SLOW_GPU = 7e11, 2.5e14, 1e13
# Only these compute capabilities, of data centers, have float64 at half the speed of float32; others at 1/32 or less.
FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
ONNX_CPU = 4e12  # multiply-adds in ONNX Runtime: 70 to 85e9 a second on the same two cores
CALIBRATION = 3e11  # multiply-adds of the images that int8 is calibrated and selected on; each is run a dozen times
TIMING = 1.5e10  # of one run of a quantization whose speed is measured
LARGEST_BATCH_SHARE = 1 / 16  # of the budget for the largest batch
DECODED_PIXELS = 1e10  # before they are resized: two cores decode 2e8 a second
HEADERS_READ = 16
ASKED = "as --images asks"
# Why a sample is used, in words: what `proof_size` says, and what a recorded proof may say.
REASON = re.compile(
    f"{ASKED}|all would take about "
    r"([0-9]+\.[0-9] s|[0-9]+ min [0-9]+ s|[0-9]+ h [0-9]+ min) "
    "(to decode|in float64 on the [CG]PU|in ONNX Runtime on the CPU); --images takes more"
)
FEWEST_IMAGES = 100  # of a sample, whatever they take: with fewer, an accuracy says nothing


@dataclass(frozen=True)
class ProofSize:
    """The number of validation images to use, and why not all of them; '' if they are."""

    images: int
    reason: str = ""


def proof_size(
    model: onnx.ModelProto,
    images: ValidationImages,
    provider: str,
    reference: torch.device | None,
    white_box: bool = False,
) -> ProofSize:
    """Decide how many images a proof of a file uses.

    Args:
        model: The file.
        images: All that there are.
        provider: ONNX Runtime's name of the execution provider.
        reference: Where torch computes the reference; None if there is none.
        white_box: Whether the graph and all weights are known to be those of the checkpoint.
    """
    macs = max(1, macs_per_image(model))
    limits = {"to decode": DECODED_PIXELS / _pixels_per_image(images)}
    # A file is proven on the same images whether its checkpoint is at hand or not, so that accuracies are comparable.
    device = reference or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limits[f"in float64 on the {'GPU' if device.type == 'cuda' else 'CPU'}"] = float64_budget(device) / macs
    if provider not in runtime.ON_GPU:
        limits["in ONNX Runtime on the CPU"] = ONNX_CPU / macs
    what, in_a_minute = min(limits.items(), key=lambda limit: limit[1])
    fitting = in_a_minute * (WHITE_BOX_SHARE if white_box else 1)
    if len(images) <= max(fitting, FEWEST_IMAGES):
        return ProofSize(len(images))
    seconds = BUDGET_S * len(images) / in_a_minute
    return ProofSize(
        max(FEWEST_IMAGES, int(fitting)), f"all would take about {duration(seconds)} {what}; --images takes more"
    )


def float64_budget(device: torch.device) -> float:
    """Return the multiply-adds in float64 that a proof may take on a device."""
    if device.type == "cpu":
        return FLOAT64_CPU
    return FLOAT64_GPU if torch.cuda.get_device_capability(device) in FAST_FLOAT64 else FLOAT64_SLOW_GPU


def images_within(macs: float, model: onnx.ModelProto, most: int) -> int:
    """Return how many images, from 1 to `most`, a model computes in a number of multiply-adds."""
    return max(1, min(most, int(macs / max(1, macs_per_image(model)))))


def macs_per_image(model: onnx.ModelProto) -> int:
    """Return the multiply-adds of a model's convolutions for one image; those of other layers are few."""
    graph = model.graph
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    quantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return sum(
        prod(weights.get(quantized.get(node.input[1], node.input[1]), ())) * prod(sizes.get(node.output[0], ())[2:])
        for node in graph.node
        if node.op_type == "Conv"
    )


def _pixels_per_image(images: ValidationImages) -> float:
    """Return the mean pixels of some of the images as they are stored; 1 if none can be read."""
    rows = images.rows[np.linspace(0, len(images) - 1, min(len(images), HEADERS_READ)).astype(int)]
    pixels = []
    for encoded in images.encoded.read([int(row) for row in rows]):
        with contextlib.suppress(DecodeError):
            header = read_header(encoded)
            pixels.append(header.height * header.width)
    return float(np.mean(pixels)) if pixels else 1.0
