"""Several nodes on one machine: seconds to the first step, to an error, and back to training after a kill.

    python benchmarks/survival.py [--runs 5]

`resnet-ops train` beside Ray Train's documented way on the same cluster, network, images and
kills, in turn. A kill is SIGKILL: of a worker, or of a node's raylet while another node is
spare. And what checkpoints within an epoch cost the training. Writes
benchmarks/results/survival.md and .json.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests' way of starting and killing nodes is used here too

from record import Row, in_turn, write  # noqa: E402

from tests.cluster.nodes import Nodes, Training  # noqa: E402

OURS, STOCK = "resnet-ops train", "Ray Train quick start"
ABOUT = """
Seconds. ResNet-20 on the embedded digits; Ray nodes of one CPU each on one machine, no GPU used.

A checkpoint every 10 steps (about 2 s) of ResNet-20 at 32x32, batch 128, one process: training waits for it {cost:.2%}
of its time.
"""


def stock_loop(config: dict[str, Any]) -> None:
    """Ray Train's documented loop: prepare_model, a checkpoint an epoch, get_checkpoint after a failure."""
    import ray.train
    import ray.train.torch
    import torch
    from ray.train import Checkpoint

    from resnet_ops.data.opening import open_source
    from resnet_ops.models import build

    images = open_source("digits").load("train")
    x = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255
    context = ray.train.get_context()
    data = torch.utils.data.TensorDataset(x, torch.from_numpy(images.labels))
    loader = torch.utils.data.DataLoader(data, batch_size=128 // context.get_world_size(), shuffle=True)
    loader = ray.train.torch.prepare_data_loader(loader)
    model = ray.train.torch.prepare_model(build("resnet20", num_classes=10, in_channels=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / "model.pt", weights_only=True)
        first = saved["epoch"] + 1
        model.module.load_state_dict(saved["model"])
    for epoch in range(first, config["epochs"]):
        for inputs, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            if context.get_world_rank() == 0:
                with Path(config["steps"]).open("a") as file:
                    file.write(f"{time.time()}\n")
        with tempfile.TemporaryDirectory() as folder:
            kept = None
            if context.get_world_rank() == 0:
                torch.save({"epoch": epoch, "model": model.module.state_dict()}, Path(folder) / "model.pt")
                kept = Checkpoint.from_directory(folder)
            ray.train.report({}, checkpoint=kept)


def stock(address: str, workers: int, epochs: int, steps: str) -> None:
    """The driver of the stock way, in a process of its own."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    TorchTrainer(
        stock_loop,
        train_loop_config={"epochs": epochs, "steps": steps},
        scaling_config=ScalingConfig(num_workers=workers, placement_strategy="STRICT_SPREAD"),
        run_config=RunConfig(
            storage_path=str(Path(steps).parent),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


class Watched:
    """A training under way, ours or stock, and the moments of its steps."""

    def __init__(self, what: str, folder: Path, nodes: Nodes, workers: int, epochs: int = 1000) -> None:
        self.started = time.time()
        self.steps = folder / "steps"
        if what == OURS:
            options = ("--cluster", nodes.address, "--nodes", workers, "--epochs", epochs)
            self.training: Training | None = Training(folder, "run", *options)
            self.process = self.training.process
            return
        self.training = None
        command = [sys.executable, __file__, "--stock", nodes.address, str(workers), str(epochs), str(self.steps)]
        log = (folder / "log").open("w")
        # Its own session, and the token that the tests' cluster does not have, left at home.
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def last_step(self) -> float:
        """When the newest step ended, as far as one can see; 0 before the first."""
        try:
            if self.training is None:
                return float(self.steps.read_text().split()[-1])
            return self.training.run.progress_file.stat().st_mtime if self.training.progress() > (0, 0) else 0.0
        except (OSError, IndexError, ValueError):
            return 0.0

    def wait_for_step_after(self, moment: float, timeout_s: float = 120) -> float:
        """Wait for a step that ended after `moment`, and return when it did."""
        deadline = time.time() + timeout_s
        while (last := self.last_step()) <= moment:
            if self.process.poll() is not None or time.time() > deadline:
                raise RuntimeError("the training ended, or does not go on")
            time.sleep(0.01)
        return last

    def end(self) -> None:
        """Kill it, and wait until its workers are gone."""
        self.process.kill()
        self.process.wait()


def first_step(what: str, folder: Path, nodes: Nodes) -> float:
    """From the shell to the first step on 4 nodes."""
    watched = Watched(what, folder, nodes, workers=4)
    try:
        return watched.wait_for_step_after(0) - watched.started
    finally:
        watched.end()


def recovery(what: str, folder: Path, nodes: Nodes, victim: str) -> float:
    """From a kill to the first step after it, with 2 workers."""
    watched = Watched(what, folder, nodes, workers=2)
    try:
        watched.wait_for_step_after(watched.wait_for_step_after(0) + 4)
        workers = nodes.workers()
        process = min(workers)
        killed = time.time()
        if victim == "worker":
            os.kill(process, signal.SIGKILL)
        else:
            nodes.kill(workers[process])
        step = killed
        while step - killed < 3:  # until the others notice they go on
            step = watched.wait_for_step_after(step)
        return step - killed
    finally:
        watched.end()
        if victim == "node":
            nodes.add()


def refusal(folder: Path, nodes: Nodes) -> float:
    """From the shell to the error, for a job that cannot fit. Stock Ray Train waits for ever."""
    started = time.time()
    training = Training(folder, "run", "--cluster", nodes.address, "--nodes", 5)
    assert training.ended() == 2
    return time.time() - started


def checkpoint_cost() -> float:
    """Share of the training's time that it waits for checkpoints, one every 10 steps of ResNet-20 at 32x32."""
    import torch

    from resnet_ops.config import TrainConfig
    from resnet_ops.data.augment import Augmentation
    from resnet_ops.data.loader import DeviceImages, Loader
    from resnet_ops.models import build
    from resnet_ops.run_records import DataRecord
    from resnet_ops.runs import Run
    from resnet_ops.training import checkpoint as checkpoints
    from resnet_ops.training.build import build_trainer
    from resnet_ops.training.checkpoint import CheckpointInfo, CheckpointStore
    from resnet_ops.training.distributed import ProcessGroup
    from resnet_ops.training.session import writing

    torch.manual_seed(0)
    split = DeviceImages(torch.randint(0, 256, (128 * 41, 32, 32, 3), dtype=torch.uint8), torch.arange(128 * 41) % 10)
    one = DeviceImages(split.pixels[:1], split.labels[:1])
    loader = Loader(split, one, (0.5,) * 3, (0.2,) * 3, 128, Augmentation(4, flip=True), 0)
    training = build_trainer(
        TrainConfig(epochs=1), build("resnet20", num_classes=10), loader, ProcessGroup(), torch.device("cpu")
    )
    data = DataRecord(
        name="x", fingerprint="0", class_names=("a",), train_images=1, val_images=1, channels=3, height=32, width=32
    )
    info = CheckpointInfo(
        model="resnet20", shortcut="A", class_names=data.class_names, channels=3, height=32, width=32,
        mean=(0.5,) * 3, std=(0.2,) * 3, data="x", data_fingerprint="0", metrics=None, step=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=ROOT) as folder, writing() as writer:
        run = Run(Path(folder))
        run.checkpoints.mkdir()
        store, waited, started = CheckpointStore(run, 1), 0.0, time.perf_counter()
        for epoch in training.run(lambda _: None, lambda step: step % 10 == 0):
            if epoch is not None:
                break
            begun = time.perf_counter()
            tensors = checkpoints.collect(training)
            writer.start(store.save, info.model_copy(update={"step": training.step}), tensors)
            waited += time.perf_counter() - begun
        return waited / (time.perf_counter() - started)


def in_a_folder(one: Callable[[Path], float]) -> float:
    """Measure something that wants an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = one(Path(folder))
    time.sleep(3)  # Ray takes a moment to give the room back
    return seconds


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stock", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stock:
        address, workers, epochs, steps = options.stock
        stock(address, int(workers), int(epochs), steps)
        return
    nodes = Nodes(4)
    rows: list[Row] = []
    try:
        questions: dict[str, Callable[[str, Path], float]] = {
            "shell to first step, 4 nodes": lambda what, folder: first_step(what, folder, nodes),
            "killed worker to training again, 2 workers": lambda what, folder: recovery(what, folder, nodes, "worker"),
            "killed node to training again, 2 workers": lambda what, folder: recovery(what, folder, nodes, "node"),
        }
        for question, ask in questions.items():
            print(question, flush=True)
            found = in_turn({what: partial(in_a_folder, partial(ask, what)) for what in (OURS, STOCK)}, options.runs)
            medians = {what: statistics.median(seconds) for what, seconds in found.items()}
            rows.append({"": question, **medians, "each": list(found.values())})
        refused = in_turn({OURS: partial(in_a_folder, partial(refusal, nodes=nodes))}, options.runs)[OURS]
        impossible = statistics.median(refused)
        rows.append({"": "impossible request to its error", OURS: impossible, STOCK: "never", "each": [refused]})
    finally:
        nodes.close()
    cost = statistics.median(checkpoint_cost() for _ in range(options.runs))
    write("survival", "Several nodes: beginning, refusing, surviving", ABOUT.format(cost=cost), rows, [], options.runs)


if __name__ == "__main__":
    main()
