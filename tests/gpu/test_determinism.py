"""With --deterministic, bytes follow from the seed on a GPU too, through kills and with or without captured steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from resnet_ops.runs import Run
from resnet_ops.training import checkpoint
from tests.conftest import Ended
from tests.gpu.conftest import command, start, succeeded
from tests.gpu.hardware import CAPTURE, DEVICE
from tests.gpu.training import assert_same_bytes
from tests.waiting import wait_for

Cli = Callable[..., Ended]
EPOCHS = 3
EVERYTHING = (
    "--random-resized-crop", "--flip", "--cutout", 2, "--mixup", 0.2, "--cutmix", 1, "--ema", 0.9, "--accumulate", 2,
    "--clip-grad-norm", 1, "--label-smoothing", 0.1,
)  # fmt: skip


def arguments(runs_dir: Path, name: str, *options: object, epochs: int = EPOCHS) -> tuple[object, ...]:
    return (
        "train", "--model", "resnet8", "--epochs", epochs, "--runs-dir", runs_dir, "--name", name, "--deterministic",
        "--json", *options,
    )  # fmt: skip


def saved(run: Run, epoch: int = EPOCHS) -> dict[str, Tensor]:
    """Return every tensor of an epoch's checkpoint."""
    read = checkpoint.read(run.checkpoints / f"epoch-{epoch:04d}.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"": read.model, "optimizer/": read.optimizer, "trained/": read.trained}
    return {part + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "options",
    [("--precision", "fp32"), ("--precision", "bf16"), EVERYTHING],
    ids=["fp32", "bf16", "everything"],
)
def test_the_same_seed_gives_the_same_bytes(options: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    """In another process, which chooses its kernels anew."""
    result = succeeded(cli(*arguments(tmp_path, "one", *options)))
    assert result["device"] == DEVICE.type
    succeeded(command(*arguments(tmp_path, "two", *options), cwd=tmp_path))
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert_same_bytes(saved(one), saved(two))
    assert [epoch.val_loss for epoch in one.epochs()] == [epoch.val_loss for epoch in two.epochs()]


def test_another_seed_gives_others(cli: Cli, tmp_path: Path) -> None:
    for seed in (0, 1):
        succeeded(cli(*arguments(tmp_path, f"seed-{seed}", "--seed", seed, epochs=1)))
    one, other = (saved(Run(tmp_path / f"seed-{seed}"), 1)["fc.weight"] for seed in (0, 1))
    assert one.ne(other).any()


@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["plain", "everything"])
def test_captured_and_uncaptured_runs_end_in_the_same_bytes(
    options: tuple[object, ...], cli: Cli, tmp_path: Path
) -> None:
    for how in ("off", CAPTURE):
        succeeded(cli(*arguments(tmp_path, how, "--cuda-graph", how, *options)))
    assert_same_bytes(saved(Run(tmp_path / "off")), saved(Run(tmp_path / CAPTURE)))


@pytest.mark.parametrize("captured", [True, False])
def test_a_killed_run_resumes_to_the_bytes_of_an_undisturbed_one(captured: bool, cli: Cli, tmp_path: Path) -> None:
    epochs = 60
    options: tuple[Any, ...] = ("--cuda-graph", CAPTURE if captured else "off", "--checkpoint-every", 7, "--ema", 0.9)
    process = start(*arguments(tmp_path, "killed", *options, epochs=epochs), cwd=tmp_path)
    killed = Run(tmp_path / "killed")
    wait_for(lambda: len(killed.epochs()) >= 2)
    process.kill()
    process.communicate()
    assert 2 <= len(killed.epochs()) < epochs
    succeeded(cli(*arguments(tmp_path, "whole", *options, epochs=epochs)))
    ended = cli("train", "--resume", "killed", "--runs-dir", tmp_path, "--json")
    assert succeeded(ended)["epochs"] == epochs
    assert "Resuming after" in ended.err
    whole = Run(tmp_path / "whole")
    assert_same_bytes(saved(killed, epochs), saved(whole, epochs))
    assert [epoch.val_loss for epoch in killed.epochs()] == [epoch.val_loss for epoch in whole.epochs()]
