"""Images/s, seconds and memory of `resnet-ops train` beside the loops that others write.

    python benchmarks/step.py [--data FOLDER] [--runs 5] [--models resnet20,resnet56,resnet18]

Everyone trains the same network on the same images, augmented alike (pad, crop, mirror), from
the images to the step: whole commands, each a fresh process, in turn. Writes
benchmarks/results/step.md and .json.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import images
import torch
from commands import Ran, resnet_ops_train, run
from record import Floor, Row, in_turn, ratio, require, write

OURS = "resnet-ops train"
PEERS = {
    "bare": "bare loop",
    "tutorial": "PyTorch tutorial's loop",
    "lightning": "Lightning",
    "timm": "timm",
}
FLOORS = {"bare": 0.97, "tutorial": 1.3}
ABOUT = """
Training on CIFAR-10 at 32x32 and on images of noise at 224x224, everyone the same network. images/s: from decoded
images to the step, median of the epochs but the first. Seconds: from the shell to the end of the command, validation
after each epoch included. Memory: the most that all its processes have at once, shared pages counted once. Ratios:
images/s of resnet-ops train over the peer's, and seconds of the peer over those of resnet-ops train; above 1 resnet-ops
is ahead.

- bare loop: the same step and batched augmentation, channels_last, fused SGD; no Ray, no checkpoints, no progress.
- PyTorch tutorial's loop: DataLoader of 2 workers, PIL transforms, NCHW, SGD, loss.item() at each step.
- Lightning: its Trainer's defaults, the same DataLoader.
- timm: its create_loader of 2 workers, optimizer, schedule and CheckpointSaver as in its train.py, the same crops.
"""


@dataclass(frozen=True)
class Setup:
    """What everyone trains."""

    model: str
    side: int
    train: int  # images; an epoch should take some 6 s, or its checkpoint is measured more than its steps
    batch_size: int
    epochs: int = 3


ON_CPU = (
    Setup("resnet20", 32, 6144, 128),
    Setup("resnet56", 32, 2048, 128),
    Setup("resnet18", 224, 160, 16),
    Setup("resnet50", 224, 64, 16),
)
ON_CUDA = (
    Setup("resnet20", 32, 50_000, 128),
    Setup("resnet56", 32, 50_000, 128),
    Setup("resnet18", 224, 4096, 256),
    Setup("resnet50", 224, 4096, 256),
)
DEFAULT = "resnet20,resnet56,resnet18"


def measure(setup: Setup, data: Path, runs: int) -> tuple[list[Row], list[Floor]]:
    """Everyone on one setup."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        if setup.side == 32:
            images.part_of_cifar10(data, folder, setup.train, setup.batch_size * 2)
        else:
            images.made_up(folder, setup.side, setup.train, setup.batch_size)
        options = ("--model", setup.model, "--batch-size", setup.batch_size, "--epochs", setup.epochs)
        one_gpu = ("--gpus-per-node", 1) if torch.cuda.is_available() else ()

        def peer(name: str) -> Callable[[], Ran]:
            metrics = folder.parent / name / "metrics.jsonl"
            metrics.parent.mkdir()
            script = Path(__file__).with_name("peers.py")
            return lambda: run(metrics, sys.executable, script, name, folder, metrics, *options)

        ours = {OURS: lambda: resnet_ops_train(folder.parent, "--data", folder, *options, *one_gpu)}
        found = in_turn(ours | {name: peer(name) for name in PEERS}, runs)
    return [row(setup, name, found) for name in found], floors(setup, found)


def row(setup: Setup, name: str, found: dict[str, list[Ran]]) -> Row:
    """A line of the table."""
    samples, ours = found[name], found[OURS]
    gpu = [ran.gpu_mib for ran in samples if ran.gpu_mib is not None]
    return {
        "network": f"{setup.model}, {setup.side}x{setup.side}, batch {setup.batch_size}",
        "": PEERS.get(name, name),
        "images/s": statistics.median(speeds(samples)),
        "ratio": None if name == OURS else ratio(speeds(ours), speeds(samples)),
        f"{setup.epochs} epochs, s": statistics.median(seconds(samples)),
        "ratio of s": None if name == OURS else ratio(seconds(samples), seconds(ours)),
        "memory, MiB": statistics.median(ran.memory_mib for ran in samples),
        "GPU memory, MiB": statistics.median(gpu) if gpu else None,
        "each": [vars(ran) for ran in samples],
    }


def floors(setup: Setup, found: dict[str, list[Ran]]) -> list[Floor]:
    """What should hold."""
    return [
        Floor(
            f"{setup.model}: images/s over the {PEERS[name]}'s", least, ratio(speeds(found[OURS]), speeds(found[name]))
        )
        for name, least in FLOORS.items()
    ]


def speeds(samples: list[Ran]) -> list[float]:
    """Images/s of each."""
    return [ran.images_per_second for ran in samples]


def seconds(samples: list[Ran]) -> list[float]:
    """From the shell to the end of each."""
    return [ran.seconds for ran in samples]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    images.add_option(parser)
    parser.add_argument("--runs", type=int, default=5)
    on_cuda = torch.cuda.is_available()
    setups = {setup.model: setup for setup in (ON_CUDA if on_cuda else ON_CPU)}
    parser.add_argument("--models", default=",".join(setups) if on_cuda else DEFAULT, help=f"of {', '.join(setups)}")
    options = parser.parse_args()
    require(pytorch_lightning="pytorch-lightning", timm="timm")
    data = images.check(options.data)
    rows, held = [], []
    for model in options.models.split(","):
        more_rows, more_held = measure(setups[model], data, options.runs)
        rows += more_rows
        held += more_held
    write("step", "The step", ABOUT, rows, held, options.runs, "torchvision", "pytorch-lightning", "timm")


if __name__ == "__main__":
    main()
