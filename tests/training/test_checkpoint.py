"""A checkpoint gives back what was put in, or says that it cannot be trusted."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.runs import Epoch, Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import CheckpointInfo, Checkpoints


def info(epoch: int = 1, accuracy: float = 0.5, loss: float = 1.0) -> CheckpointInfo:
    metrics = Epoch(
        epoch=epoch, step=epoch, train_loss=1, train_error=0.5, val_loss=loss, val_error=1 - accuracy, lr=0.1,
        images_per_second=1, seconds=1,
    )  # fmt: skip
    return CheckpointInfo(
        model="resnet8", shortcut="A", class_names=("a", "b"), channels=1, height=8, width=8, mean=(0.5,), std=(0.2,),
        data="x", data_fingerprint="0", metrics=metrics,
    )  # fmt: skip


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = build("resnet8", num_classes=2, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    for _ in range(2):
        network(torch.randn(4, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    return network, optimizer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    for folder in (made.checkpoints, made.best):
        folder.mkdir(parents=True)
    return made


def test_what_is_restored_is_what_was_saved(tmp_path: Path) -> None:
    network, optimizer = trained()
    checkpoints.save(tmp_path / "c.safetensors", info(), checkpoints.collect(network, optimizer))
    read = checkpoints.read(tmp_path / "c.safetensors")
    assert read.info == info()
    torch.manual_seed(1)
    other = read.info.build_network().to(memory_format=torch.channels_last)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, fused=True)
    checkpoints.restore(read, other, other_optimizer)
    for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        ours, theirs = optimizer.state[a]["momentum_buffer"], other_optimizer.state[b]["momentum_buffer"]
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, info(), checkpoints.collect(*trained()))
    return path


def test_a_truncated_file_is_refused_wherever_it_was_cut(file: Path) -> None:
    content = file.read_bytes()
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged"):
            checkpoints.read(file)


def test_any_changed_byte_is_noticed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for position in range(8, len(content), len(content) // 97):
        changed = content.copy()
        changed[position] ^= 0x10
        file.write_bytes(changed)
        with pytest.raises(UserError, match="damaged"):
            checkpoints.read(file)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["torch", "torch-legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "model.safetensors", tmp_path / "harm"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save(Bomb(target), path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        checkpoints.read(path)
    assert not target.exists()


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a checkpoint of resnet-ops"):
        checkpoints.read(tmp_path / "x.safetensors")


def test_the_best_and_the_last_are_kept(run: Run) -> None:
    keeper = Checkpoints(run, num_to_keep=2)
    network, optimizer = trained()
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.8, 0.6, 0.4], start=1):
        keeper.save(info(epoch, accuracy), network, optimizer)
    assert [p.stem for p in checkpoints.saved(run)] == ["epoch-0006", "epoch-0004", "epoch-0002"]
    best, refused = checkpoints.read_best(run)
    assert (best.path, best.info.metrics.epoch, refused) == (run.best / "model.safetensors", 2, [])
    assert not best.optimizer
    assert CheckpointInfo.model_validate_json((run.best / "model.json").read_bytes()) == best.info


def test_of_equal_accuracies_the_smaller_loss_is_best(run: Run) -> None:
    keeper = Checkpoints(run, num_to_keep=1)
    for epoch, loss in enumerate([0.3, 0.2, 0.25], start=1):
        keeper.save(info(epoch, 0.9, loss), *trained())
    assert checkpoints.read_best(run)[0].info.metrics.epoch == 2


def test_a_damaged_best_gives_way_to_the_best_that_is_whole(run: Run) -> None:
    keeper = Checkpoints(run, num_to_keep=2)
    for epoch, accuracy in enumerate([0.7, 0.9, 0.8], start=1):
        keeper.save(info(epoch, accuracy), *trained())
    (run.best / "model.safetensors").write_bytes(b"\0" * 100)
    best, refused = checkpoints.read_best(run)
    assert best.path.name == "epoch-0002.safetensors"
    assert len(refused) == 1
    best.path.write_bytes(best.path.read_bytes()[:-5])
    best, refused = checkpoints.read_best(run)
    assert (best.path.name, len(refused)) == ("epoch-0003.safetensors", 2)
    best.path.unlink()
    with pytest.raises(UserError, match="no checkpoint that is whole"):
        checkpoints.read_best(run)


def test_resuming_passes_over_the_damaged_and_brings_all_files_together(run: Run) -> None:
    keeper = Checkpoints(run, num_to_keep=3)
    for epoch, accuracy in enumerate([0.6, 0.9, 0.7], start=1):
        keeper.save(info(epoch, accuracy), *trained())
        run.append_epoch(info(epoch, accuracy).metrics)
    last = run.checkpoints / "epoch-0003.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    (run.best / "model.safetensors").unlink()
    keeper = Checkpoints(run, num_to_keep=3)
    latest, refused = keeper.latest()
    assert latest is not None
    assert latest.info.metrics.epoch == 2
    assert "damaged" in refused[0]
    assert last.with_suffix(".damaged").exists()  # set aside, not destroyed
    keeper.rewind(latest)
    assert [epoch.epoch for epoch in run.epochs()] == [1, 2]
    assert checkpoints.read(run.best / "model.safetensors").info.metrics.epoch == 2


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.training.test_checkpoint import *\n"
        "tensors = checkpoints.collect(*trained())\n"
        "tensors['model/ballast'] = torch.zeros(2_000_000)\n"
        "for epoch in range(1, 10**6):\n"
        "    checkpoints.save(Path(sys.argv[1]), info(epoch), tensors); print(epoch, flush=True)\n"
    )
    path = tmp_path / "c.safetensors"
    for round_ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(0.003 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert checkpoints.read(path).info.metrics.epoch >= 3
