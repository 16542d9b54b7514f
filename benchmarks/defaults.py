"""What the defaults of `train` leave to a search: both begin with the same weights and see the same 400 images.

    python benchmarks/defaults.py [--data CIFAR10] [--source RUNS] [--trials 20]

Accuracy on the 4,000 test images of the four classes, which chose nothing. The search is `resnet-ops tune` as it comes,
of the network that the weights are of. --source is as for finetune.py. It takes 10 minutes on 2 cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from finetune import MODEL, SOURCE, Cifar, accuracy, measure, prepare
from images import add_option, check
from record import write_once

from resnet_ops.formatting import percent
from resnet_ops.runs import Run

IMAGES, SEEDS = 400, 3
STARTS = {"defaults": (), "--recipe finetune": ("--recipe", "finetune")}


def command(*arguments: object) -> float:
    """Run resnet-ops, and return the seconds that it took."""
    began = time.monotonic()
    program = [sys.executable, "-P", "-m", "resnet_ops", *map(str, arguments), "--quiet"]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    cifar, accuracies, seconds = Cifar(check(options.data)), dict[str, list[float]](), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as name:
        folder, runs_dir = Path(name), options.source or Path(name) / "runs"
        test_images = prepare(cifar, folder, runs_dir)
        for seed in range(SEEDS):
            data = folder / f"photos-{seed}"
            cifar.write_few(data, IMAGES, seed)
            common = ("--data", data, "--weights", SOURCE, "--runs-dir", runs_dir, "--cache-dir", folder / "cache")
            plans = {
                start: ("train", *common, "--seed", seed, *own, "--name", f"{seed}-{number}", "--overwrite")
                for number, (start, own) in enumerate(STARTS.items())
            }
            searched = ("--trials", options.trials, "--seed", seed, "--cpus-per-trial", 1)
            plans[f"best of {options.trials} trials"] = (
                "tune", f"model={MODEL}", *common, *searched, "--name", f"{seed}-search", "--overwrite",
            )  # fmt: skip
            for plan, arguments in plans.items():
                seconds.setdefault(plan, []).append(command(*arguments))
                measured = measure(Run(runs_dir / str(arguments[arguments.index("--name") + 1])), test_images)
                accuracies.setdefault(plan, []).append(accuracy(measured))
                print(f"seed {seed}, {plan}: {percent(accuracies[plan][-1])}", flush=True)
    about = (
        f"{IMAGES} images of four of CIFAR-10's classes, a fifth of them to choose on; weights of a {MODEL} that knows "
        f"the other six. `resnet-ops train` with its defaults and with the recipe `finetune`, and `resnet-ops tune` as "
        f"it comes. Accuracy on 4,000 test images, which chose nothing; mean of {SEEDS} seeds, each with images of its "
        "own."
    )
    rows = [
        {
            "plan": plan,
            "test accuracy": percent(float(np.mean(of_seeds))),
            "of each seed": ", ".join(map(percent, of_seeds)),
            "seconds": f"{np.mean(seconds[plan]):.0f}",
        }
        for plan, of_seeds in accuracies.items()
    ]
    write_once("defaults", "Defaults and a search", about, rows)


if __name__ == "__main__":
    main()
