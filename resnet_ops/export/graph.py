"""A checkpoint as an ONNX graph: BatchNorm folded, any batch size, all it needs to be used inside."""

import json
import warnings
from pathlib import Path

import onnx
import torch

import resnet_ops
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.training.checkpoint import Checkpoint

INPUT, OUTPUT = "images", "logits"


def to_onnx(checkpoint: Checkpoint, opset: int) -> onnx.ModelProto:
    """Export the network of a checkpoint.

    Its input `images` is (batch, C, H, W) float32, normalised as the metadata's `preprocessing`
    says; its output `logits` is (batch, classes) float32. The same checkpoint gives the same
    bytes, from whatever folder.

    Raises:
        UserError: The exporter made another opset than the one asked for, which it does in
            silence where it cannot convert.
    """
    info = checkpoint.info
    network = info.build_network()
    network.load_state_dict(checkpoint.model)
    network = network.to(memory_format=torch.contiguous_format).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own older parts
        program = torch.onnx.export(
            network,
            (torch.zeros(2, info.channels, info.height, info.width),),
            dynamo=True,
            verbose=False,  # otherwise it prints to stdout, and fails where that is ASCII
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    made = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if made != opset:
        raise UserError(f"The exporter made opset {made} instead of {opset}.", "Try another --opset.", WORK_FAILED)
    _forget_sources(model)
    onnx.helper.set_model_props(model, _metadata(checkpoint))
    return model


def write(model: onnx.ModelProto) -> bytes:
    """Serialize, the same way every time."""
    return bytes(model.SerializeToString(deterministic=True))


def preprocessing(checkpoint: Checkpoint) -> dict[str, object]:
    """How raw pixels become the input, as the file's metadata says it."""
    info = checkpoint.info
    return {
        "color": "grey" if info.channels == 1 else "RGB",
        "layout": "NCHW",
        "dtype": "float32",
        "height": info.height,
        "width": info.width,
        "scale": 1 / 255,
        "mean": list(info.mean),
        "std": list(info.std),
    }


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    info = checkpoint.info
    return {
        "class_names": json.dumps(info.class_names),
        "preprocessing": json.dumps(preprocessing(checkpoint)),
        "model": info.model,
        "shortcut": info.shortcut or "none",
        "data": info.data,
        "data_fingerprint": info.data_fingerprint,
        "epoch": str(info.epoch),
        "val_accuracy": repr(info.validated.val_accuracy),
        "checkpoint_sha256": checkpoint.sha256,
        "made_by": f"resnet-ops {resnet_ops.__version__}, torch {torch.__version__}",
    }


def _forget_sources(model: onnx.ModelProto) -> None:
    """Take out the exporter's notes: they hold stack traces with paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def default_name(folder: Path) -> Path:
    """Where an accepted export lies."""
    return folder / "model.onnx"
