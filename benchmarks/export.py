"""Images/s of exported files in ONNX Runtime beside torch eager, and of int8 beside fp32.

    python benchmarks/export.py [--seconds 3] [--networks resnet20,resnet18]

The networks are freshly made, with BatchNorm statistics of noise: speed does not depend on weights. int8 is of the form
that `resnet-ops export --precision int8` finds fastest here. Writes
benchmarks/results/export.md and .json.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from record import Floor, Row, ratio, write

from resnet_ops.architectures import parse_name
from resnet_ops.export import bench, graph, precision, runtime, untrusted
from resnet_ops.export.bench import Measurement
from resnet_ops.export.bench_worker import BenchCandidate
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.machine import memory_bytes
from resnet_ops.models import build
from resnet_ops.training.checkpoint import CheckpointInfo

FP32, INT8 = "ONNX Runtime, fp32", "ONNX Runtime, int8"
NCHW, CHANNELS_LAST = "torch eager, NCHW", "torch eager, channels_last"
CALIBRATION_IMAGES = 64  # of noise, for only the speed matters here
INT8_FLOORS = {("resnet20", 256): 1.8}  # over fp32
BYTES_PER_IMAGE = 16 * 2**20  # of 224x224, for each of the four; 12 were measured
ABOUT = """
Exported files in ONNX Runtime on the CPU, beside the same networks in torch eager, in the faster of its two memory
formats: normalized images in, logits out. Everyone computes in a process of its own on all cores, in turn. p99 of fewer
than 100 calls is the slowest. Memory: the most that the process had beyond the libraries. Ratio: images/s over torch
eager's.
"""


@dataclass(frozen=True)
class Setup:
    """What is measured, and by how much ONNX Runtime should be ahead of torch, for each batch size."""

    model: str
    side: int
    classes: int
    floors: dict[int, float]


SETUPS = {
    "resnet20": Setup("resnet20", 32, 10, {1: 2.5, 256: 1.4}),
    "resnet18": Setup("resnet18", 224, 1000, {1: 1.3, 32: 1.3, 256: 1.3}),
}


def export(setup: Setup, fp32: Path, int8: Path) -> ModelMetadata:
    """Write both files as `resnet-ops export` does; what they say of themselves is the same but for the precision."""
    torch.manual_seed(0)
    shortcut = parse_name(setup.model).default_shortcut
    network = build(setup.model, num_classes=setup.classes, in_channels=3, shortcut=shortcut).train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(8, 3, setup.side, setup.side))
    info = CheckpointInfo(
        model=setup.model,
        shortcut=shortcut,
        class_names=tuple(map(str, range(setup.classes))),
        channels=3,
        height=setup.side,
        width=setup.side,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        data="noise",
        data_fingerprint="0",
        metrics=None,
    )
    model = graph.to_onnx(info, network.state_dict(), 18)
    metadata = ModelMetadata(
        class_names=info.class_names,
        preprocessing=Preprocessing.of(info, "normalized"),
        model=info.model,
        shortcut=info.shortcut,
        data=info.data,
        data_fingerprint=info.data_fingerprint,
        epoch=0,
        checkpoint_sha256="0",
        made_by=graph.tool_versions(),
    )
    x = torch.randn(CALIBRATION_IMAGES, 3, setup.side, setup.side).numpy()
    quantized, _ = precision.to_int8(model, x, runtime.CPU)
    for made, file in ((model, fp32), (quantized, int8)):
        graph.set_metadata(made, metadata)
        graph.write(made, file)
        untrusted.check_file(file)
    return metadata


def measure(setup: Setup, seconds: float) -> tuple[list[Row], list[Floor]]:
    """Every batch size of one setup."""
    rows, floors = [], []
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        candidate = partial(BenchCandidate, metadata=export(setup, fp32, int8), provider=runtime.CPU)
        candidates = [
            candidate(FP32, file=fp32, engine="onnx"),
            candidate(INT8, file=int8, engine="onnx"),
            candidate(NCHW, file=fp32, engine="eager"),
            candidate(CHANNELS_LAST, file=fp32, engine="eager", channels_last=True),
        ]
        for batch, least in setup.floors.items():
            if setup.side > 64 and len(candidates) * batch * BYTES_PER_IMAGE > memory_bytes():
                print(f"{setup.model}: no memory for batches of {batch}", flush=True)
                continue
            measured = {one.candidate.name: one for one in bench.measure(candidates, batch, seconds, print)}
            eager = max((measured[NCHW], measured[CHANNELS_LAST]), key=lambda one: one.images_per_second)
            rows += [row(setup, one, eager) for one in measured.values()]
            ahead = ratio(measured[FP32].speeds, eager.speeds)
            floors.append(Floor(f"{setup.model}, batch {batch}: fp32 over {eager.candidate.name}", least, ahead))
            if at_least := INT8_FLOORS.get((setup.model, batch)):
                faster = ratio(measured[INT8].speeds, measured[FP32].speeds)
                floors.append(Floor(f"{setup.model}, batch {batch}: int8 over fp32", at_least, faster))
    return rows, floors


def row(setup: Setup, one: Measurement, eager: Measurement) -> Row:
    """A line of the table."""
    if one.error:
        raise SystemExit(f"error: {one.candidate.name}: {one.error}")
    return {
        "network": f"{setup.model}, {setup.side}x{setup.side}",
        "batch": one.batch,
        "": one.candidate.name,
        "images/s": statistics.median(one.speeds),
        "ratio": None if one is eager else ratio(one.speeds, eager.speeds),
        "p50, ms": one.p50_ms,
        "p99, ms": one.p99_ms,
        "memory, MiB": None if one.memory_bytes is None else one.memory_bytes / 2**20,
        "calls": len(one.calls),
        "each": one.speeds,
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each, at each batch size")
    parser.add_argument("--networks", default=",".join(SETUPS), help=f"of {', '.join(SETUPS)}")
    options = parser.parse_args()
    rows, held = [], []
    for model in options.networks.split(","):
        more_rows, more_held = measure(SETUPS[model], options.seconds)
        rows += more_rows
        held += more_held
    write("export", "Exported files", ABOUT, rows, held, bench.ROUNDS, "onnx", "onnxruntime-gpu")


if __name__ == "__main__":
    main()
