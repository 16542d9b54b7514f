"""What pretrained weights bring: a network that knows six of CIFAR-10's classes learns the other four from few images.

    python benchmarks/finetune.py [--data CIFAR10] [--source RUNS] [--epochs 30]

Against the same network from scratch, with as many steps, on the 4,000 test images of the four classes, which chose
nothing. --source keeps the runs there, and begins from the one of six classes if it is there already. It takes 20
minutes, on one core: batches of 8 and 16 small images gain nothing by two.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from images import add_option, check, write_parquet
from record import Row, write_once

from resnet_ops import train
from resnet_ops.config import DataConfig
from resnet_ops.data.opening import open_source
from resnet_ops.data.parallel_decode import ImageArray
from resnet_ops.export.reference import Reference
from resnet_ops.formatting import percent
from resnet_ops.recipes.reading import configure
from resnet_ops.runs import Run
from resnet_ops.significance import MeasuredAccuracy, compare
from resnet_ops.training.checkpoint import read_best

MODEL = "resnet8"
SOURCE, SOURCE_EPOCHS = "six-classes", 4
KNOWN, NEW = range(6), range(6, 10)  # classes, in CIFAR-10's order
IMAGES = (400, 200)  # of all new classes together; a fifth of them to choose the epoch on
SEEDS = 3  # each with images of its own
STARTS = {"scratch": {}, "fine-tuned": {"weights": SOURCE}}


class Cifar:
    """CIFAR-10, of which parts are written as datasets of their own."""

    def __init__(self, folder: Path) -> None:
        self.train, self.test = (
            pa.concat_tables(pq.read_table(file) for file in sorted(folder.glob(f"{split}-*.parquet")))
            for split in ("train", "test")
        )
        described = json.loads(self.test.schema.metadata[b"huggingface"])
        self.names = described["info"]["features"]["label"]["names"]

    def write(self, file: Path, images: pa.Table, classes: range, each: slice = slice(None)) -> None:
        """Write some images of each of some classes, numbered anew."""
        labels = images.column(1).to_numpy()
        rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[each] for label in classes]))
        encoded = [row["bytes"] for row in images.column(0).take(rows).to_pylist()]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(file, encoded, labels[rows] - classes.start, [self.names[label] for label in classes])

    def write_few(self, data: Path, images: int, seed: int) -> None:
        """Write training images of the new classes, as many of each; of each seed others."""
        each = images // len(NEW)
        self.write(data / "train.parquet", self.train, NEW, slice(seed * each, (seed + 1) * each))

    def load_unseen(self, folder: Path, each: slice = slice(None), **options: object) -> ImageArray:
        """Return test images of the new classes, which are written into a folder, with options of the data."""
        self.write(folder / "new.parquet", self.test, NEW, each)
        unseen = DataConfig.of(data=str(folder / "new.parquet"), fit_all=True, cache_dir=folder / "cache", **options)
        return open_source(unseen).load("train")  # all of them


def run(runs_dir: Path, data: Path, name: str, **options: object) -> Run:
    """Train a network."""
    where = {
        "data": str(data),
        "runs_dir": runs_dir,
        "name": name,
        "cache_dir": data.parent / "cache",
        "cpus_per_worker": 1,
    }
    return train(configure(**where, model=MODEL, **options), overwrite=True).run


def measure(trained: Run, images: ImageArray) -> MeasuredAccuracy:
    """Classify test images with the chosen weights."""
    checkpoint, _ = read_best(trained)
    correct = Reference(checkpoint).logits(images.pixels).argmax(1) == images.labels
    which = int.from_bytes(np.packbits(correct, bitorder="little").tobytes(), "little")
    return MeasuredAccuracy(int(correct.sum()), len(correct), which)


def accuracy(measured: MeasuredAccuracy) -> float:
    """Return the share of images that are classified correctly."""
    return measured.correct / measured.images


def prepare(cifar: Cifar, folder: Path, runs_dir: Path) -> ImageArray:
    """Train the network of six classes, unless it is there, and return the test images of the others."""
    if not (runs_dir / SOURCE / "best").is_dir():
        cifar.write(folder / "six/train.parquet", cifar.train, KNOWN)
        cifar.write(folder / "six/val.parquet", cifar.test, KNOWN)
        run(runs_dir, folder / "six", SOURCE, recipe="fast", epochs=SOURCE_EPOCHS)
    return cifar.load_unseen(folder)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    cifar, rows = Cifar(check(options.data)), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        folder, runs_dir = Path(name), options.source or Path(name) / "runs"
        test_images = prepare(cifar, folder, runs_dir)
        for images in IMAGES:
            results: dict[str, list[MeasuredAccuracy]] = {start: [] for start in STARTS}
            for seed in range(SEEDS):
                data = folder / f"{images}-{seed}"
                cifar.write_few(data, images, seed)
                for start, own in STARTS.items():
                    trained = run(runs_dir, data, f"{data.name}-{start}", seed=seed, epochs=options.epochs, **own)
                    measured = measure(trained, test_images)
                    results[start].append(measured)
                    print(f"{images} images, seed {seed}, {start}: {percent(accuracy(measured))}", flush=True)
            rows += rows_of(images, results)
    write(rows, options.epochs)


def rows_of(images: int, results: dict[str, list[MeasuredAccuracy]]) -> list[Row]:
    """Return a row for each start: its accuracies, and in how many seeds it is better than scratch by chance's rule."""
    rows: list[Row] = []
    for start, measured in results.items():
        accuracies = [accuracy(each) for each in measured]
        better = [
            compare({"scratch": scratch, start: each}).differ("scratch", start) and each.correct > scratch.correct
            for scratch, each in zip(results["scratch"], measured, strict=True)
        ]
        rows.append(
            {
                "images": images,
                "start": start,
                "test accuracy": percent(float(np.mean(accuracies))),
                "of each seed": ", ".join(map(percent, accuracies)),
                "better than scratch": "" if start == "scratch" else f"{sum(better)} of {len(better)} seeds",
            }
        )
    return rows


def write(rows: list[Row], epochs: int) -> None:
    """Write and print the table."""
    about = (
        f"{MODEL}, trained for {SOURCE_EPOCHS} epochs on all {len(KNOWN)} x 5,000 images of CIFAR-10's first classes, "
        f"then on a few of each of the other {len(NEW)}, {epochs} epochs of `train` with its defaults; against as many "
        "from scratch. A fifth of the images chose the epoch. Accuracy on the 4,000 test images of these classes, "
        f"which chose nothing; mean of {SEEDS} seeds, each with images of its own; better by an exact McNemar test."
    )
    write_once("finetune", "Fine-tuning", about, rows)


if __name__ == "__main__":
    main()
