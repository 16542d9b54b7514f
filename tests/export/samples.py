"""Small checkpoints, images and models for the tests of exports."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image

from resnet_ops.data.decode import CropSpec
from resnet_ops.export import graph, precision, runtime
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.proof_report import ProofReport
from resnet_ops.export.reference import Reference
from resnet_ops.models import build
from resnet_ops.run_records import Epoch
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo

OPSET = 18
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CLASSES = 10
RGB = CropSpec((1, 1), 1, 1, 3)  # to decode images in color, of their own size
EPOCH = Epoch(
    epoch=1, step=1, train_loss=1, train_error=1, val_loss=1, val_error=1, lr=1, images_per_second=1, seconds=1
)


def make_checkpoint(
    path: Path,
    model: str,
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    *,
    shortcut: str | None = None,
    stored: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Checkpoint:
    """Save and read back the checkpoint of a network with random weights and BatchNorm statistics."""
    torch.manual_seed(seed)
    network = build(model, num_classes=CLASSES, in_channels=channels, shortcut=shortcut)  # type: ignore[arg-type]
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(16, channels, *size) * 1.5 + 0.3)
    info = CheckpointInfo(
        model=model,
        shortcut=getattr(network, "shortcut", None) if not model.startswith("plain") else None,
        class_names=tuple("abcdefghij"),
        channels=channels,
        height=size[0],
        width=size[1],
        stored=stored,
        mean=MEAN[:channels],
        std=STD[:channels],
        data="noise",
        data_fingerprint="0",
        metrics=EPOCH,
    )
    checkpoints.save(path, info, {f"model/{name}": value for name, value in network.state_dict().items()})
    return checkpoints.read(path)


class InMemoryImages:
    """Encoded images in memory, as PNG."""

    units = None

    def __init__(self, images: Sequence[np.ndarray], labels: np.ndarray) -> None:
        self.labels = labels
        self.stored = [png(image) for image in images]

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        return [self.stored[row] for row in rows]

    def name(self, row: int) -> str:
        return f"image {row}"


def png(image: np.ndarray) -> bytes:
    """Encode an image (H, W, C) uint8 as PNG."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue()


def make_images(size: tuple[int, int] = (32, 32), channels: int = 3, count: int = 100) -> ValidationImages:
    """Return coarse images, colored so that red and blue differ, brighter on the left."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse)[:, :, :channels] * np.linspace(1, 0.3, channels)
        images.append((pixels * np.linspace(1, 0.5, size[1])[:, None]).astype(np.uint8))
    labels = rng.integers(0, CLASSES, count)
    return ValidationImages(InMemoryImages(images, labels), np.arange(count), labels)


def metadata_of(checkpoint: Checkpoint, **update: object) -> ModelMetadata:
    """Return the metadata of an export of `checkpoint`."""
    info = checkpoint.info
    input_format = update.get("input", "normalized")
    values: dict[str, object] = {
        "class_names": info.class_names,
        "preprocessing": Preprocessing.of(info, input_format),  # type: ignore[arg-type]
        "model": info.model,
        "shortcut": info.shortcut,
        "data": info.data,
        "data_fingerprint": info.data_fingerprint,
        "epoch": info.epoch,
        "held_out": info.held_out,
        "began_from": info.began_from,
        "checkpoint_sha256": checkpoint.sha256,
        "val_accuracy": info.metrics.val_accuracy if info.metrics else None,
        "selected_by": info.select if info.metrics and info.metrics.val_accuracy is not None else None,
        "made_by": graph.tool_versions(),
    }
    return ModelMetadata.model_validate(values | update)


def make_model(checkpoint: Checkpoint, raw: bool = False, softmax: bool = False) -> onnx.ModelProto:
    """Export a checkpoint to fp32, with metadata."""
    model = graph.to_onnx(checkpoint.info, checkpoint.model, OPSET)
    return finish(model, checkpoint, raw=raw, softmax=softmax)


def make_lower(checkpoint: Checkpoint, form: str, pixels: np.ndarray, **options: object) -> onnx.ModelProto:
    """Export a checkpoint to fp16 or int8, calibrated on pixels (N, H, W, C) uint8, with metadata."""
    model = graph.to_onnx(checkpoint.info, checkpoint.model, OPSET)
    x = normalize_pixels(pixels, Preprocessing.of(checkpoint.info, "normalized"))
    if form == "fp16":
        converted, choice = precision.to_fp16(model, x)
        return finish(converted, checkpoint, precision=form, precision_choice=choice, **options)  # type: ignore[arg-type]
    converted, candidates = precision.to_int8(model, x, runtime.CPU)
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    choice, error = precision.describe_int8(chosen.form, chosen.method, len(x) // 2), chosen.measured
    return finish(converted, checkpoint, precision=form, precision_choice=choice, quantization_error=error, **options)  # type: ignore[arg-type]


def finish(
    model: onnx.ModelProto,
    checkpoint: Checkpoint,
    raw: bool = False,
    softmax: bool = False,
    **update: object,
) -> onnx.ModelProto:
    """Add what an export adds to a graph: preprocessing, softmax, metadata."""
    if update.get("precision") == "fp16":
        update = {"precision_choice": precision.describe_fp16(model)} | update
    elif update.get("precision") == "int8":  # of which the error was not measured
        update = {"precision_choice": precision.describe_int8("u8s8", "minmax", 0)} | update
    metadata = metadata_of(
        checkpoint,
        input="raw" if raw else "normalized",
        output="probabilities" if softmax else "logits",
        **update,
    )
    if raw:
        graph.prepend_preprocessing(model, metadata.preprocessing)
    if softmax:
        graph.append_softmax(model)
    graph.set_metadata(model, metadata)
    return model


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def properties_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata properties of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def change(model: onnx.ModelProto, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the initializer called `name`."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(new(numpy_helper.to_array(tensor).copy()), name))
            return
    raise AssertionError(f"no {name} among {[t.name for t in model.graph.initializer]}")


def verify_model(
    model: onnx.ModelProto,
    reference: Reference,
    images: ValidationImages | None,
    folder: Path,
    sample: int | None = None,
    **thresholds: object,
) -> ProofReport:
    """Write a model to a file and verify it, on a sample of the images if it is given."""
    file = folder / "m.onnx"
    graph.write(model, file)
    defaults: dict[str, object] = {"provider": runtime.CPU, "opset": OPSET, "images": sample}
    return verify_file(file, reference, images, ProofThresholds(**(defaults | thresholds)))  # type: ignore[arg-type]
