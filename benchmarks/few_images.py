"""The learning rate of few images, whose default batch is smaller: the usual one as it is, or less by the batch.

    python benchmarks/few_images.py [--data CIFAR10]

From scratch, on some of four of CIFAR-10's classes. Accuracy on 1,000 test images, which chose nothing. It takes 30
minutes on 2 cores.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from finetune import NEW, SEEDS, Cifar, accuracy, measure
from images import add_option, check
from record import Row, write_once

from resnet_ops import train
from resnet_ops.formatting import percent
from resnet_ops.recipes.reading import configure, usual_batch_size

TEST_IMAGES = 1000
PLANS = (  # network, image size, images, recipe, epochs
    ("resnet8", None, 400, None, 30),
    ("resnet20", None, 100, None, 30),
    ("resnet20", None, 400, None, 30),
    ("resnet20", None, 400, "fast", 30),
    ("resnet18", "64", 200, None, 10),
)
# Factors on the usual rate, by the batch's share of the usual batch.
RULES: dict[str, Callable[[float], float]] = {
    "by the batch (default)": lambda share: share,
    "half of it": lambda share: share / 2,
    "by its square root": math.sqrt,
    "as it is": lambda _: 1.0,
}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    cifar, rows = Cifar(check(parser.parse_args().data)), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"runs_dir": folder / "runs", "cache_dir": folder / "cache", "cpus_per_worker": 2}
        for model, image_size, images, recipe, epochs in PLANS:
            sized = {"image_size": image_size} if image_size else {}
            test_images = cifar.load_unseen(folder, slice(TEST_IMAGES // len(NEW)), **sized)
            found: dict[str, list[float]] = {rule: [] for rule in RULES}
            for seed in range(SEEDS):
                data = folder / f"{images}-{seed}"
                cifar.write_few(data, images, seed)
                options = common | sized | {"data": str(data), "model": model, "epochs": epochs, "seed": seed}
                options |= {"recipe": recipe, "name": "trained"}
                usual, share = configure(**options).lr, 1.0
                for number, (rule, factor) in enumerate(RULES.items()):
                    given = {"lr": usual * factor(share)} if number else {}
                    run = train(configure(**options, **given), overwrite=True).run
                    settled = run.read().config
                    share = settled.batch_size / usual_batch_size(recipe)
                    found[rule].append(accuracy(measure(run, test_images)))
                    print(f"{model}, {images}, seed {seed}, lr {settled.lr:g}: {percent(found[rule][-1])}", flush=True)
            rows += [
                {
                    "network": model if image_size is None else f"{model} at {image_size}",
                    "images": images,
                    "recipe": recipe or "default",
                    "epochs": epochs,
                    "batch": settled.batch_size,
                    "rule": rule,
                    "lr": f"{usual * factor(share):.3g}",
                    "test accuracy": percent(float(np.mean(found[rule]))),
                    "of each seed": ", ".join(map(percent, found[rule])),
                }
                for rule, factor in RULES.items()
            ]
    about = (
        f"`resnet-ops train` from scratch on some images of four of CIFAR-10's classes, a fifth of them to choose the "
        f"epoch on. Accuracy on {TEST_IMAGES:,} test images, which chose nothing; mean of {SEEDS} seeds, each with "
        "images of its own."
    )
    write_once("few_images", "The learning rate of few images", about, rows)


if __name__ == "__main__":
    main()
