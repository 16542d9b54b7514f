"""How much too high an accuracy is on the images that an epoch, or a trial, was chosen on.

Some trainings on 700 of the built-in digits; of the other 1,097, those for validation are drawn again and again, epoch
and trial are chosen on them, and the accuracy on the images that were not drawn is subtracted.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from record import Row, write_once

from resnet_ops import TrainConfig, train
from resnet_ops.data.augment import normalize
from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.opening import open_source
from resnet_ops.training import checkpoint as checkpoints

TRAIN_IMAGES, VAL_IMAGES, EPOCHS, TRIALS = 700, 180, 20, 6
DRAWS = 2000


def correct_predictions(folder: Path, seed: int) -> np.ndarray:
    """Train a network and return which images it gets right after each epoch, (epochs, images) bool."""
    config = TrainConfig(
        model="resnet8",
        data=str(folder / "digits"),
        flip=False,
        epochs=EPOCHS,
        batch_size=64,
        num_to_keep=EPOCHS,
        seed=seed,
        cpus_per_worker=1,
        runs_dir=folder / "runs",
        name=f"seed-{seed}",
    )
    run, images, correct = train(config).run, open_source(config).load("val"), []
    for path in reversed(checkpoints.saved_checkpoints(run)):
        checkpoint = checkpoints.read(path)
        network = checkpoint.info.build_network().eval()
        network.load_state_dict(checkpoint.model)
        with torch.inference_mode():
            x = normalize(torch.from_numpy(images.pixels), checkpoint.info.mean, checkpoint.info.std)
            correct.append(network(x).argmax(1).numpy() == images.labels)
    return np.array(correct)


def excess(correct: np.ndarray) -> dict[str, float]:
    """Return by how many percentage points chosen accuracies are too high, of predictions (trials, epochs, images)."""
    random, trials, images = np.random.default_rng(0), np.arange(len(correct)), correct.shape[2]
    found: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        drawn = np.isin(np.arange(images), random.permutation(images)[:VAL_IMAGES])
        val, other = correct[..., drawn].mean(-1), correct[..., ~drawn].mean(-1)
        best = val.argmax(1)
        points = 100 * (val - other)
        chosen = val[trials, best].argmax()
        found.setdefault("last epoch, not chosen", []).append(points[:, -1].mean())
        found.setdefault(f"best of {EPOCHS} epochs", []).append(points[trials, best].mean())
        found.setdefault(f"best of {TRIALS} trials and their epochs", []).append(points[chosen, best[chosen]])
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Measure, print and write the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    digits = pq.read_table(EMBEDDED["digits"])
    digits = digits.take(np.random.default_rng(0).permutation(len(digits)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "digits").mkdir()
        pq.write_table(digits[:TRAIN_IMAGES], folder / "digits" / "train.parquet")
        pq.write_table(digits[TRAIN_IMAGES:], folder / "digits" / "val.parquet")
        correct = np.stack([correct_predictions(folder, seed) for seed in range(TRIALS)])
    rows: list[Row] = [{"": name, "points too high": points} for name, points in excess(correct).items()]
    about = (
        f"ResNet-8, {TRIALS} seeds of {EPOCHS} epochs on {TRAIN_IMAGES} digits; {VAL_IMAGES} of the other "
        f"{correct.shape[2]:,} images are drawn for validation, {DRAWS:,} times. In percentage points: the accuracy on "
        "these, less that on the images not drawn, means over draws."
    )
    write_once("selection", "Chosen accuracies", about, rows)


if __name__ == "__main__":
    main()
