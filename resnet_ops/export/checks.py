"""What can be seen of an exported file without running it: is it what was asked for, and what it says it is?"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto

from resnet_ops.data.decode import CropSpec
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
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
    return "; ".join(
        found_faults
    ) or f"opset {found}, {len(model.graph.node)} nodes, dynamic batch size", not found_faults


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
    return "; ".join(found) or f"{len(metadata.class_names)} classes, preprocessing, checkpoint", not found


def largest_batch(model: onnx.ModelProto, frame: CropSpec) -> int:
    """The largest power of two of images that surely fits into memory, up to `LARGEST_BATCH`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    each = activation_bytes_per_image(model) + 8 * int(np.prod(frame.shape))
    fitting = max(1, min(LARGEST_BATCH, int(SHARE * free_bytes(device) / each)))
    return 1 << (fitting.bit_length() - 1)
