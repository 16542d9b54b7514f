"""A checkpoint gives back what was put in, or says that it cannot be trusted."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.run_records import Epoch
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.build import build_trainer
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo, CheckpointStore
from resnet_ops.training.distributed import ProcessGroup, statistics
from resnet_ops.training.trainer import Trainer

CPU = torch.device("cpu")


def info(epoch: int = 1, accuracy: float = 0.5, loss: float = 1.0, step: int = 0) -> CheckpointInfo:
    metrics = Epoch(
        epoch=epoch, step=epoch, train_loss=1, train_error=0.5, val_loss=loss, val_error=1 - accuracy, lr=0.1,
        images_per_second=1, seconds=1,
    )  # fmt: skip
    return CheckpointInfo(
        model="resnet8", shortcut="A", class_names=("a", "b"), channels=1, height=8, width=8, mean=(0.5,), std=(0.2,),
        data="x", data_fingerprint="0", metrics=metrics, step=step,
    )  # fmt: skip


ALL = {"ema": 0.9, "accumulate": 2, "mixup": 0.4}


def fresh(seed: int = 0, world: ProcessGroup | None = None, **options: float) -> Trainer:
    torch.manual_seed(seed)
    split = DeviceImages(torch.randint(0, 256, (40, 8, 8, 1), dtype=torch.uint8), torch.arange(40) % 2)
    config = TrainConfig.of(epochs=1000, **options)
    loader = Loader(split, split, (0.5,), (0.2,), 4, Augmentation.of(config, 2), 0)
    return build_trainer(config, build("resnet8", num_classes=2, in_channels=1), loader, world or ProcessGroup(), CPU)


def trained(steps: int = 2) -> Trainer:
    made = fresh()
    for _ in made.run(lambda _: None, lambda step: step == steps):
        return made
    raise AssertionError


def tensors() -> dict[str, torch.Tensor]:
    return checkpoints.collect(trained())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    for folder in (made.checkpoints, made.best):
        folder.mkdir(parents=True)
    return made


def test_what_is_restored_is_what_was_saved(tmp_path: Path) -> None:
    one = trained()
    checkpoints.save(tmp_path / "c.safetensors", info(step=2), checkpoints.collect(one))
    read = checkpoints.read(tmp_path / "c.safetensors")
    assert read.info == CheckpointInfo.model_validate_json(info(step=2).model_dump_json())
    other = fresh(seed=1)
    checkpoints.restore(read, other)
    for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        ours, theirs = one.optimizer.state[a]["momentum_buffer"], other.optimizer.state[b]["momentum_buffer"]
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    assert (other.epoch, other.step) == (1, 2)
    assert torch.equal(one.totals, other.totals)


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("stop", [1, 7, 10, 13])
def test_going_on_within_an_epoch_ends_in_the_same_bytes(stop: int, options: dict[str, float]) -> None:
    def states(training: Trainer, is_due: Callable[[int], bool]) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        for _ in training.run(lambda _: None, is_due):
            yield training.epoch * 10 + training.step, checkpoints.collect(training)

    whole = next(state for step, state in states(fresh(**options), lambda _: False) if step == 20)
    saved = next(state for step, state in states(fresh(**options), lambda step: step == stop) if step == stop)
    info_ = info(step=stop % 10).model_copy(update={"metrics": info(stop // 10).metrics if stop >= 10 else None})
    parts = {part: checkpoints._below(part, saved) for part in ("model/", "optimizer/", "workers/", "trained/")}
    assert bool(parts["trained/"]) == bool(options)
    resumed = fresh(seed=5, **options)
    # The images are drawn by the seed too, and are the same everywhere in real life.
    resumed.loader = fresh(**options).loader
    checkpoints.restore(Checkpoint(Path(), info_, "", *parts.values()), resumed)
    ended = next(state for step, state in states(resumed, lambda _: False) if step == 20)
    assert whole.keys() == ended.keys()
    for name in whole:
        assert whole[name].numpy().tobytes() == ended[name].numpy().tobytes(), name


def test_a_network_without_batchnorm_resumes_within_an_epoch_with_its_average(tmp_path: Path) -> None:
    """As AlexNet and VGG are: it has no statistics, and nothing that counts batches."""

    def without_batchnorm(seed: int) -> Trainer:
        one = fresh(seed, ema=0.9)
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        return build_trainer(one.config, network, one.loader, one.group, CPU)

    def after(steps: int, training: Trainer) -> dict[str, torch.Tensor]:
        next(training.run(lambda _: None, lambda step: step == steps))
        return checkpoints.collect(training)

    whole = after(4, without_batchnorm(0))
    checkpoints.save(tmp_path / "c.safetensors", info(0, step=2), after(2, without_batchnorm(0)))
    resumed = without_batchnorm(1)
    resumed.loader = without_batchnorm(0).loader
    checkpoints.restore(checkpoints.read(tmp_path / "c.safetensors"), resumed)
    resumed.epoch = 0
    assert resumed.step == 2
    for name, value in after(4, resumed).items():
        assert torch.equal(value, whole[name]), name


def test_other_workers_share_what_the_old_ones_had() -> None:
    one = trained()
    state = checkpoints.collect(one)
    rows = torch.stack([statistics(one.network) + rank for rank in range(4)])
    state |= {"workers/statistics": rows, "workers/totals": torch.tensor([[1.0, 2.0]] * 4, dtype=torch.float64)}
    parts = {part: checkpoints._below(part, state) for part in ("model/", "optimizer/", "workers/")}
    checkpoint = Checkpoint(Path(), info(step=2), "", *parts.values())
    totals = torch.zeros(2, dtype=torch.float64)
    for rank in range(2):
        other = fresh(seed=1, world=ProcessGroup(rank, 2))
        checkpoints.restore(checkpoint, other)
        torch.testing.assert_close(statistics(other.network), rows.mean(0))
        totals += other.totals
    assert totals.tolist() == [4, 8]
    for rank in range(4):
        same = fresh(seed=1, world=ProcessGroup(rank, 4))
        checkpoints.restore(checkpoint, same)
        assert torch.equal(statistics(same.network), rows[rank])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, info(), tensors())
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
    with pytest.raises(UserError, match="is a pickle; loading it could run code"):
        checkpoints.read(path)
    assert not target.exists()


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a checkpoint of resnet-ops"):
        checkpoints.read(tmp_path / "x.safetensors")


def test_the_best_and_the_last_are_kept(run: Run) -> None:
    store = CheckpointStore(run, num_to_keep=2)
    state = tensors()
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.8, 0.6, 0.4], start=1):
        store.save(info(epoch, accuracy), state)
    assert [p.stem for p in checkpoints.saved_checkpoints(run)] == ["epoch-0006", "epoch-0004", "epoch-0002"]
    best, refused = checkpoints.read_best(run)
    assert (best.path, best.info.epoch, refused) == (run.best / "model.safetensors", 2, [])
    assert not best.optimizer
    assert CheckpointInfo.model_validate_json((run.best / "model.json").read_bytes()) == best.info


def test_within_an_epoch_only_the_last_is_kept_and_none_is_called_best(run: Run) -> None:
    store = CheckpointStore(run, num_to_keep=1)
    state = tensors()
    store.save(info(1, step=2).model_copy(update={"metrics": None}), state)
    store.save(info(1, step=5).model_copy(update={"metrics": None}), state)
    assert [p.name for p in checkpoints.saved_checkpoints(run)] == ["epoch-0001-step-000005.safetensors"]
    store.save(info(1), state)
    store.save(info(1, step=3), state)
    names = ["epoch-0002-step-000003.safetensors", "epoch-0001.safetensors"]
    assert [p.name for p in checkpoints.saved_checkpoints(run)] == names
    latest, _ = CheckpointStore(run, num_to_keep=1).latest()
    assert latest is not None
    assert (latest.info.epoch, latest.info.step) == (1, 3)
    (run.best / "model.safetensors").unlink()
    assert checkpoints.read_best(run)[0].path.name == "epoch-0001.safetensors"
    with pytest.raises(UserError, match="during epoch 2 and have not been validated"):
        _ = latest.info.validated
    store.save(info(2, 0.1), state)
    assert [p.name for p in checkpoints.saved_checkpoints(run)] == ["epoch-0002.safetensors", "epoch-0001.safetensors"]


def test_of_equal_accuracies_the_smaller_loss_is_best(run: Run) -> None:
    store = CheckpointStore(run, num_to_keep=1)
    for epoch, loss in enumerate([0.3, 0.2, 0.25], start=1):
        store.save(info(epoch, 0.9, loss), tensors())
    assert checkpoints.read_best(run)[0].info.epoch == 2


def test_a_damaged_best_gives_way_to_the_best_that_is_whole(run: Run) -> None:
    store = CheckpointStore(run, num_to_keep=2)
    for epoch, accuracy in enumerate([0.7, 0.9, 0.8], start=1):
        store.save(info(epoch, accuracy), tensors())
    (run.best / "model.safetensors").write_bytes(b"\0" * 100)
    best, refused = checkpoints.read_best(run)
    assert best.path.name == "epoch-0002.safetensors"
    assert len(refused) == 1
    best.path.write_bytes(best.path.read_bytes()[:-5])
    best, refused = checkpoints.read_best(run)
    assert (best.path.name, len(refused)) == ("epoch-0003.safetensors", 2)
    best.path.unlink()
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoints.read_best(run)


def test_a_run_within_its_first_epoch_has_no_best_weights_yet(run: Run) -> None:
    CheckpointStore(run, num_to_keep=2).save(info(0, 0.0).model_copy(update={"step": 5}), tensors())
    with pytest.raises(UserError, match=r"has not finished an epoch yet.*--resume"):
        checkpoints.read_best(run)


def test_resuming_passes_over_the_damaged_and_brings_all_files_together(run: Run) -> None:
    store = CheckpointStore(run, num_to_keep=3)
    for epoch, accuracy in enumerate([0.6, 0.9, 0.7], start=1):
        store.save(info(epoch, accuracy), tensors())
    last = run.checkpoints / "epoch-0003.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    (run.best / "model.safetensors").unlink()
    store = CheckpointStore(run, num_to_keep=3)
    latest, refused = store.latest()
    assert latest is not None
    assert latest.info.epoch == 2
    assert "damaged" in refused[0]
    assert last.with_suffix(".damaged").exists()  # set aside, not destroyed
    store.rewind(latest)
    assert [epoch.epoch for epoch in run.epochs()] == [1, 2]
    assert checkpoints.read(run.best / "model.safetensors").info.epoch == 2


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.training.test_checkpoint import *\n"
        "state = tensors()\n"
        "state['model/ballast'] = torch.zeros(2_000_000)\n"
        "for epoch in range(1, 10**6):\n"
        "    checkpoints.save(Path(sys.argv[1]), info(epoch), state); print(epoch, flush=True)\n"
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
        assert checkpoints.read(path).info.epoch >= 3
