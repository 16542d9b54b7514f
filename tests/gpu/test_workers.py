"""Two workers on one GPU train as one does, and one that is alone says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from tests.gpu.hardware import DEVICE, cuda_itself
from tests.gpu.rank import TIMEOUT_S, Task, run_rank
from tests.gpu.training import assert_same_bytes

# 127 images make shares of 64 and 63. Without BatchNorm a higher rate diverges.
UNEVEN = {"batch_size": 127, "epochs": 1, "lr": 0.02}


def train(task: Task) -> list[dict[str, Any]]:
    """Run the ranks in processes of their own; return what each has left."""
    codes = spawn(task)
    errors = [file.read_text() for file in task.folder.glob("*.error")]
    assert codes == [0] * task.world_size, errors
    return [torch.load(task.folder / f"{rank}.pt") for rank in range(task.world_size)]


def spawn(task: Task) -> list[int | None]:
    task.folder.mkdir()
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, task)) for rank in range(task.world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(3 * TIMEOUT_S)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def assert_alike(folder: Path, options: dict[str, Any], batchnorm: bool) -> list[dict[str, Any]]:
    """Train with two workers and with one: the same weights, but for the order of sums."""
    (alone,) = train(Task(folder / "one", 1, options, batchnorm))
    ranks = train(Task(folder / "two", 2, options, batchnorm))
    assert_same_bytes(ranks[0]["tensors"], ranks[1]["tensors"])
    for name, expected in alone["tensors"].items():
        torch.testing.assert_close(ranks[0]["tensors"][name], expected, rtol=2e-3, atol=2e-4, msg=name)
    (one,), (two, *_) = alone["epochs"], ranks[0]["epochs"]
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert ranks[0]["device"] == str(DEVICE)
    return ranks


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 3}, {"clip_grad_norm": 0.5}], ids=["plain", "accumulated", "clipped"]
)
def test_gradients_of_uneven_shares_are_those_of_one_worker(options: dict[str, Any], tmp_path: Path) -> None:
    """Each layer's gradients differ if they are averaged per share, and so do the weights after 12 steps."""
    ranks = assert_alike(tmp_path, UNEVEN | options, batchnorm=False)
    assert not any(rank["captured"] for rank in ranks)  # gloo's sums pass through the host
    assert all(rank["why_not"] for rank in ranks)


@cuda_itself  # torch has it for GPUs only
def test_synchronous_batchnorm_sees_the_whole_batch(tmp_path: Path) -> None:
    assert_alike(tmp_path, UNEVEN | {"sync_batchnorm": True}, batchnorm=True)


def test_statistics_are_averaged_once_an_epoch(tmp_path: Path) -> None:
    ranks = train(Task(tmp_path / "two", 2, UNEVEN | {"epochs": 2}))
    assert_same_bytes(ranks[0]["tensors"], ranks[1]["tensors"])
    assert [epoch["val_loss"] for epoch in ranks[0]["epochs"]] == [epoch["val_loss"] for epoch in ranks[1]["epochs"]]


def test_a_worker_that_is_gone_is_noticed_by_the_other(tmp_path: Path) -> None:
    codes = spawn(Task(tmp_path / "two", 2, UNEVEN | {"epochs": 50}, dies_at=4))
    assert codes == [2, 1]
    told = json.loads((tmp_path / "two" / "0.error").read_text())
    assert told["is_loss"], told
    assert told["waited_s"] < TIMEOUT_S / 2
