"""What each part of the recipe `finetune` brings on few photographs, whose network knows CIFAR-10's images.

    python benchmarks/photographs.py --photos FOLDER [--data CIFAR10]

FOLDER holds photographs in a folder per class: train/ of the repository alexeygrigorev/clothing-dataset-small, CC0. 400
of four classes that are easily confused are trained on; all others of these classes are unseen. It takes 15 minutes on
one core.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from finetune import SEEDS, accuracy, measure
from images import add_option, check
from record import Row, write_once

from resnet_ops import train
from resnet_ops.config import DataConfig
from resnet_ops.data.opening import open_source
from resnet_ops.formatting import percent
from resnet_ops.recipes.reading import configure

CLASSES = ("longsleeve", "outwear", "shirt", "t-shirt")
EACH, SIDE, EPOCHS = 100, 48, 30
SOURCE, SOURCE_EPOCHS, MODEL = "small-images", 5, "resnet8"
BASE = 'recipe = "finetune"\n'
CROPS, NO_EMA, NO_SMOOTHING = "random_resized_crop = true\n", "ema = 0.0\n", "label_smoothing = 0.0\n"
RECIPES = {  # TOML
    "finetune": BASE,
    "with --random-resized-crop": BASE + CROPS,
    "without EMA": BASE + NO_EMA,
    "without label smoothing": BASE + NO_SMOOTHING,
    "without both": BASE + NO_EMA + NO_SMOOTHING,
    "with --random-resized-crop, without EMA": BASE + CROPS + NO_EMA,
    "with --random-resized-crop, without label smoothing": BASE + CROPS + NO_SMOOTHING,
}


def write_photos(photos: Path, seen: Path, unseen: Path, seed: int) -> None:
    """Link some photographs of each class into one folder, and all others into another."""
    for name in CLASSES:
        files = sorted(path for path in (photos / name).iterdir() if path.is_file())
        order = np.random.default_rng(seed).permutation(len(files))
        for folder, some in ((seen, order[:EACH]), (unseen, order[EACH:])):
            (folder / name).mkdir(parents=True)
            for row in some:
                (folder / name / files[row].name).symlink_to(files[row].resolve())


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    parser.add_argument("--photos", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"runs_dir": folder / "runs", "cache_dir": folder / "cache", "cpus_per_worker": 1, "model": MODEL}
        train(configure(**common, data=str(check(options.data)), name=SOURCE, epochs=SOURCE_EPOCHS))
        for seed in range(SEEDS):
            seen, unseen = folder / f"seen-{seed}", folder / f"unseen-{seed}"
            write_photos(options.photos, seen, unseen, seed)
            sized = {"image_size": str(SIDE), "cache_dir": folder / "cache"}
            others = open_source(DataConfig.of(data=str(unseen), fit_all=True, **sized)).load("train")  # all of them
            for number, (recipe, text) in enumerate(RECIPES.items()):
                file = folder / f"{number}.toml"
                file.write_text(text)
                begin = {"weights": SOURCE, "epochs": EPOCHS, "seed": seed, "recipe": str(file), "name": "trained"}
                run = train(configure(**common | sized | begin, data=str(seen)), overwrite=True).run
                found[recipe].append(accuracy(measure(run, others)))
                print(f"seed {seed}, {recipe}: {percent(found[recipe][-1])}", flush=True)
    about = (
        f"`resnet-ops train` on {EACH * len(CLASSES)} photographs of four kinds of clothes at {SIDE} pixels, a fifth "
        f"of them to choose the epoch on; {EPOCHS} epochs of a {MODEL} trained on CIFAR-10 for {SOURCE_EPOCHS}. "
        f"Accuracy on the other {len(others):,} photographs, which chose nothing; mean of {SEEDS} seeds, each with "
        "photographs of its own."
    )
    rows: list[Row] = [
        {
            "recipe": recipe,
            "test accuracy": percent(float(np.mean(of_seeds))),
            "of each seed": ", ".join(map(percent, of_seeds)),
        }
        for recipe, of_seeds in found.items()
    ]
    write_once("photographs", "The recipe finetune on photographs", about, rows)


if __name__ == "__main__":
    main()
