"""The learning rate of few images, whose default batch is smaller: SGD's 0.1 as it is, or less by the batch.

    python benchmarks/few_images.py [--data CIFAR10]

From scratch, on some of four of CIFAR-10's classes. Accuracy on 1,000 test images, which chose nothing. It takes 20
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
from resnet_ops.config import TrainConfig
from resnet_ops.formatting import percent
from resnet_ops.recipes.reading import configure

TEST_IMAGES = 1000
PLANS = (  # network, image size, images, epochs
    ("resnet8", None, 400, 30),
    ("resnet20", None, 100, 30),
    ("resnet20", None, 400, 30),
    ("resnet18", "64", 200, 10),
)
LR, BATCH = TrainConfig.default("lr"), TrainConfig.default("batch_size")
# The rates by the batch's share of the default batch, which is what the default rate of 0.1 is for.
RULES: dict[str, Callable[[float], float]] = {
    "by the batch (default)": lambda share: LR * share,
    "half of it": lambda share: LR * share / 2,
    "by its square root": lambda share: LR * math.sqrt(share),
    "0.1": lambda _: LR,
}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    cifar, rows = Cifar(check(parser.parse_args().data)), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"runs_dir": folder / "runs", "cache_dir": folder / "cache", "cpus_per_worker": 2}
        for model, image_size, images, epochs in PLANS:
            sized = {"image_size": image_size} if image_size else {}
            test_images = cifar.load_unseen(folder, slice(TEST_IMAGES // len(NEW)), **sized)
            found: dict[str, list[float]] = {rule: [] for rule in RULES}
            for seed in range(SEEDS):
                data = folder / f"{images}-{seed}"
                cifar.write_few(data, images, seed)
                options = common | sized | {"data": str(data), "model": model, "epochs": epochs, "seed": seed}
                share = 1.0
                for number, (rule, rate) in enumerate(RULES.items()):
                    given = {"lr": rate(share)} if number else {}
                    run = train(configure(**options, **given, name="trained"), overwrite=True).run
                    settled = run.read().config
                    share = settled.batch_size / BATCH
                    found[rule].append(accuracy(measure(run, test_images)))
                    print(f"{model}, {images}, seed {seed}, lr {settled.lr:g}: {percent(found[rule][-1])}", flush=True)
            rows += [
                {
                    "network": model if image_size is None else f"{model} at {image_size}",
                    "images": images,
                    "epochs": epochs,
                    "batch": settled.batch_size,
                    "rule": rule,
                    "lr": f"{rate(share):.3g}",
                    "test accuracy": percent(float(np.mean(found[rule]))),
                    "of each seed": ", ".join(map(percent, found[rule])),
                }
                for rule, rate in RULES.items()
            ]
    about = (
        f"`resnet-ops train` from scratch on some images of four of CIFAR-10's classes, a fifth of them to choose the "
        f"epoch on. Accuracy on {TEST_IMAGES:,} test images, which chose nothing; mean of {SEEDS} seeds, each with "
        "images of its own."
    )
    write_once("few_images", "The learning rate of few images", about, rows)


if __name__ == "__main__":
    main()
