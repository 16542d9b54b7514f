"""Seconds from the shell to the first optimizer step, and from the last one back to the shell.

    python benchmarks/startup.py [--runs 5]

`resnet-ops train` beside Ray Train's quick start on the same network, images and number of
steps: each a fresh process, in turn, so that the machine's moods fall on both alike. Writes
benchmarks/results/startup.md and .json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from record import Row, in_turn, write

EPOCHS = 2
ABOUT = f"ResNet-20 on the embedded digits, {EPOCHS} epochs, on CPUs; fresh processes."


def stock(workers: int) -> None:
    """Ray Train's documented way: TorchTrainer, prepare_model, report with a checkpoint."""
    import numpy as np
    import ray.train
    import ray.train.torch
    import torch
    from ray.train import Checkpoint, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from resnet_ops.data.opening import open_source
    from resnet_ops.models import build

    steps_file = os.environ["STEPS_FILE"]

    def loop() -> None:
        images = open_source("digits").load("train")
        x = torch.from_numpy(images.pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, torch.from_numpy(images.labels)), batch_size=128 // workers, shuffle=True
        )
        loader = ray.train.torch.prepare_data_loader(loader)
        model = ray.train.torch.prepare_model(build("resnet20", num_classes=10, in_channels=1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(EPOCHS):
            for inputs, labels in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                if ray.train.get_context().get_world_rank() == 0:
                    with Path(steps_file).open("a") as file:
                        file.write(f"{time.time()}\n")
            with tempfile.TemporaryDirectory() as folder:
                torch.save(model.state_dict(), Path(folder) / "model.pt")
                leads = ray.train.get_context().get_world_rank() == 0
                ray.train.report({}, checkpoint=Checkpoint.from_directory(folder) if leads else None)

    storage = RunConfig(storage_path=str(Path(steps_file).parent))
    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=workers), run_config=storage).fit()


def measure_stock(workers: int) -> dict[str, float]:
    """One fresh process of the stock quick start."""
    with tempfile.TemporaryDirectory() as folder:
        steps_file = Path(folder) / "steps"
        environment = os.environ | {"STEPS_FILE": str(steps_file)}
        started = time.time()
        subprocess.run(
            [sys.executable, __file__, "--stock", str(workers)], env=environment, check=True, capture_output=True
        )
        ended = time.time()
        steps = [float(line) for line in steps_file.read_text().split()]
    return {
        "shell to first step, s": steps[0] - started,
        "last step to shell, s": ended - steps[-1],
        "whole command, s": ended - started,
    }


def measure_ours(workers: int) -> dict[str, float]:
    """One fresh process of `resnet-ops train`, seen from outside but for the moment of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("resnet-ops")), "train", "--json", "--epochs", str(EPOCHS),
            "--device", "cpu", "--workers-per-node", str(workers), "--runs-dir", folder,
        ]  # fmt: skip
        started = time.time()
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        ended = time.time()
    told = json.loads(result.stdout)
    beyond = (ended - started) - told["total_s"]  # the process's own end
    return {
        "shell to first step, s": told["time_to_first_step_s"],
        "last step to shell, s": told["time_after_last_step_s"] + beyond,
        "whole command, s": ended - started,
    }


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stock", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stock:
        stock(options.stock)
        return
    rows: list[Row] = []
    for workers in (1, 2):
        peers = {"resnet-ops train": measure_ours, "Ray Train quick start": measure_stock}
        samples = in_turn({name: partial(measure, workers) for name, measure in peers.items()}, options.runs)
        for name, found in samples.items():
            medians = {key: statistics.median(sample[key] for sample in found) for key in found[0]}
            rows.append({"workers": workers, "": name, **medians, "each": found})
    write("startup", "Start-up", ABOUT, rows, [], options.runs)


if __name__ == "__main__":
    main()
