"""Images/s of `resnet-ops train` with 1, 2 and 4 workers on this machine, for the same global batch.

    python benchmarks/workers.py [--data FOLDER] [--runs 5]

Workers share the machine: on CPUs its cores, so that more of them cannot be faster, and what
they are slower is what their work together costs. With GPUs each worker has one. Writes
benchmarks/results/workers.md and .json.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import images
import torch
from commands import Ran, resnet_ops_train
from record import Floor, in_turn, ratio, write

from resnet_ops.machine import cores

WORKERS = (1, 2, 4)
FLOOR = 0.85
MODEL, BATCH_SIZE, EPOCHS = "resnet20", 128, 3
ABOUT = f"""
{MODEL} on CIFAR-10, global batch {BATCH_SIZE}. images/s of all workers together: median of the epochs but the first.
Seconds: from the shell to the end of {EPOCHS} epochs. On CPUs workers share the cores: the ratio is what is left of
one worker's speed. More workers than cores run on a Ray node that claims as many cores as workers.
"""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    images.add_option(parser)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    data = images.check(options.data)
    gpus = torch.cuda.device_count()
    layouts = {count: gpu_workers(count) if gpus else cpu_workers(count) for count in WORKERS if count <= (gpus or 4)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        images.part_of_cifar10(data, folder, 50_000 if gpus else 2048, 2 * BATCH_SIZE)
        measures = {title: partial(train, folder, where) for title, where in layouts.values()}
        found = in_turn(measures, options.runs)
    speeds = {title: [ran.images_per_second for ran in samples] for title, samples in found.items()}
    one = next(iter(speeds))
    rows = [
        {
            "": title,
            "images/s": statistics.median(speeds[title]),
            "ratio": None if title == one else ratio(speeds[title], speeds[one]),
            f"{EPOCHS} epochs, s": statistics.median(ran.seconds for ran in samples),
            "each": [vars(ran) for ran in samples],
        }
        for title, samples in found.items()
    ]
    floors = []
    if not gpus:
        two = list(speeds)[1]
        floors.append(Floor(f"{two} over {one}", FLOOR, ratio(speeds[two], speeds[one])))
    write("workers", "Workers on one machine", ABOUT, rows, floors, options.runs)


Where = Callable[[], contextlib.AbstractContextManager[tuple[object, ...]]]


def cpu_workers(count: int) -> tuple[str, Where]:
    """Some workers on this machine's cores: what to call it, and the options that ask for it."""
    threads = max(cores() // count, 1)
    title = f"{count} worker{'s' * (count > 1)}, {threads} thread{'s' * (threads > 1)} each"
    if count > cores():
        return f"{title}, on {cores()} cores", partial(crowded, count)
    return title, lambda: contextlib.nullcontext(("--device", "cpu", "--workers-per-node", count))


def gpu_workers(count: int) -> tuple[str, Where]:
    """Some workers with a GPU each."""
    return f"{count} GPUs", lambda: contextlib.nullcontext(("--gpus-per-node", count))


@contextlib.contextmanager
def crowded(count: int) -> Iterator[tuple[object, ...]]:
    """A Ray node that claims a core for each worker: resnet-ops itself refuses more workers than cores."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": count, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield "--device", "cpu", "--cluster", cluster.address, "--workers-per-node", count
    finally:
        cluster.shutdown()


def train(folder: Path, where: Where) -> Ran:
    """One training."""
    options = ("--model", MODEL, "--batch-size", BATCH_SIZE, "--epochs", EPOCHS, "--data", folder)
    with where() as placed:
        return resnet_ops_train(folder.parent, *options, *placed)


if __name__ == "__main__":
    main()
