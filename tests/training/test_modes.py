"""Every network trains in every mode, goes on from a checkpoint within an epoch to the same bytes, and with workers.

torchvision's have an eighth of their channels and all of their layers, as it is these that modes depend on: dropout, no
BatchNorm, branches. What each mode computes is in test_trainer.py, what a step in a CUDA graph does in tests/gpu.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from resnet_ops.architectures import BASELINES, parse_name
from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader
from resnet_ops.models import build
from resnet_ops.run_records import Epoch
from resnet_ops.training import checkpoint
from resnet_ops.training.build import build_trainer
from resnet_ops.training.checkpoint import CheckpointInfo
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.loss import weigh_classes
from resnet_ops.training.trainer import Trainer

NETWORKS = ("resnet8", "plain8", "alexnet", "vgg19", "googlenet")
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema": 0.9},
    "accumulated": {"accumulate": 3},
    "mixed": {"mixup": 0.4, "cutmix": 0.4, "label_smoothing": 0.1, "trivial_augment": True, "random_erasing": 0.5},
    "clipped": {"clip_grad_norm": 0.01, "nesterov": True, "norm_weight_decay": 0.0},
    "slow": {"fused": False, "channels_last": False, "deterministic": True},
    "adamw": {"optimizer": "adamw", "head_lr": 10.0, "norm_weight_decay": 0.0},
    "fp16": {"precision": "fp16", "gradient_checkpointing": True},
    "frozen at first": {"freeze_epochs": 1, "freeze_batchnorm": True},
    "fine-tuned": {
        "optimizer": "adamw", "precision": "fp16", "freeze_epochs": 1, "head_lr": 10.0, "gradient_checkpointing": True,
        "ema": 0.9, "accumulate": 2, "clip_grad_norm": 1.0,
    },
    "all": {
        "ema": 0.9, "accumulate": 2, "mixup": 0.4, "clip_grad_norm": 1.0, "deterministic": True, "color_jitter": 0.4,
        "focal_gamma": 2.0, "class_weights": "a=3", "sampler": "balanced",
    },
}  # fmt: skip
WITH_WORKERS = [*itertools.product(NETWORKS, ("plain", "all")), ("resnet8", "fine-tuned")]
CPU = torch.device("cpu")
BATCH, IMAGES, STEPS = 8, 22, 3  # steps of an epoch; the last one has two of the images again
THINNED = (("Conv2d", 2), ("Linear", 2), ("BatchNorm2d", 1))  # and how many arguments are widths
TIMEOUT_S = 120.0


def thin(layer: type[nn.Module], widths: int) -> type[nn.Module]:
    """Return a layer whose first `widths` arguments are an eighth of what they are, where they are numbers inside."""

    class Thin(layer):  # type: ignore[misc, valid-type]
        def __init__(self, *sizes: int, **options: Any) -> None:
            scaled = [size // 8 if size >= 16 and size % 8 == 0 else size for size in sizes[:widths]]
            super().__init__(*scaled, *sizes[widths:], **options)

    return Thin


def trainer(name: str, group: ProcessGroup | None = None, seed: int = 0, **options: Any) -> Trainer:
    group = group or ProcessGroup()
    side = max(8, parse_name(name).smallest_image)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, side, side, 3), dtype=torch.uint8, generator=generator)
    split = DeviceImages(pixels, torch.arange(IMAGES) % 2)
    config = TrainConfig.of(model=name, epochs=2, batch_size=BATCH, lr=0.01, **options)
    augmentation = Augmentation.of(config, 2)
    balanced = config.sampler == "balanced"
    loader = Loader(split, split, (0.5,) * 3, (0.2,) * 3, BATCH, augmentation, 0, group.rank, group.size, balanced)
    with pytest.MonkeyPatch.context() as patch:
        for layer, widths in THINNED if parse_name(name).kind in BASELINES else ():
            patch.setattr(nn, layer, thin(getattr(nn, layer), widths))
        torch.manual_seed(seed)
        network = build(name, num_classes=2)
    weights = weigh_classes(config, ("a", "b"), split.labels)
    return build_trainer(config, network, loader, group, CPU, class_weights=weights)


def info(name: str, metrics: Epoch | None, step: int) -> CheckpointInfo:
    return CheckpointInfo(
        model=name, shortcut=None, class_names=("a", "b"), channels=3, height=8, width=8, mean=(0.5,), std=(0.2,),
        data="x", data_fingerprint="0", metrics=metrics, step=step,
    )  # fmt: skip


def never(_: int) -> bool:
    return False


def run(ours: Trainer, is_due: Callable[[int], bool] = never) -> tuple[dict[str, Tensor], list[Epoch]]:
    epochs = [epoch for epoch in ours.run(lambda _: None, is_due) if epoch is not None]
    return checkpoint.collect(ours), epochs


def run_to(ours: Trainer, step: int, file: Path) -> None:
    """Train until after `step` steps in all, and save: rank 0 does, and the others wait."""
    metrics = None
    for epoch in ours.run(lambda _: None, lambda done: done == step):
        metrics = epoch or metrics
        if ours.epoch * STEPS + ours.step == step:
            break
    tensors = checkpoint.collect(ours)
    if ours.group.rank == 0:
        checkpoint.save(file, info(ours.config.model, metrics, ours.step), tensors)
    if ours.group.size > 1:
        dist.barrier()


def assert_same_bytes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if ours[name].numpy().tobytes() != theirs[name].numpy().tobytes()]
    assert not differing


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def undisturbed(name: str, mode: str) -> tuple[dict[str, Tensor], list[Epoch]]:
    return run(trainer(name, **MODES[mode]))


# These have most of what the others have, which are checked by `make test-slow`.
USUAL = {*itertools.product(NETWORKS, ["all"]), ("resnet8", "fine-tuned"), ("alexnet", "fine-tuned")}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        case if case in USUAL else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(NETWORKS, MODES)
    ],
)
def test_a_network_goes_on_from_within_an_epoch_in_every_mode(name: str, mode: str, tmp_path: Path) -> None:
    """By way of a file, from a step of the second epoch, and with all modes at once from one of the first too.

    Where other layers are trained from the second epoch on, also from right before its first step.
    """
    options, file = MODES[mode], tmp_path / "c.safetensors"
    whole, epochs = undisturbed(name, mode)
    assert len(epochs) == 2
    assert all(torch.isfinite(value).all() for value in whole.values())
    for step in {"all": (2, 4), "fine-tuned": (STEPS, 4), "frozen at first": (STEPS, 4)}.get(mode, (4,)):
        run_to(trainer(name, **options), step, file)
        resumed = trainer(name, seed=9, **options)
        resumed.rehearse(resumed.network)  # as the compiler's trial does; it leaves nothing behind
        checkpoint.restore(checkpoint.read(file), resumed)
        torch.manual_seed(step)  # of another process, in which dropout follows from the step all the same
        ended, left = run(resumed)
        assert_same_bytes(ended, whole)
        measured = {"train_loss", "train_error", "val_loss", "val_error", "lr", "step"}
        assert left[-1].model_dump(include=measured) == epochs[-1].model_dump(include=measured)


def test_an_average_begins_with_the_weights_of_a_training_that_has_none(tmp_path: Path) -> None:
    """As where population based training gives a trial another one's weights."""
    run_to(trainer("resnet8"), STEPS, file := tmp_path / "c.safetensors")
    theirs, ours = checkpoint.read(file), trainer("resnet8", seed=9, ema=0.9)
    checkpoint.restore(theirs, ours)
    for network in ours.networks:
        assert_same_bytes(network.state_dict(), theirs.model)


@pytest.mark.parametrize(
    "name", [name if name == "resnet8" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_every_mode_trains_otherwise(name: str) -> None:
    """So that none of them is switched off for a network."""
    ends = {mode: undisturbed(name, mode)[0] for mode in MODES if mode != "slow"}
    for one, other in itertools.combinations(ends, 2):
        assert any(not torch.equal(ends[one][key], ends[other][key]) for key in ends[one] if key in ends[other])


def evaluated(group: ProcessGroup) -> dict[str, Any]:
    """Evaluate a network of 9 classes, of which 7 have images, on all workers of a group together."""
    one = trainer("resnet8", group)
    split = DeviceImages(one.loader.train.pixels, torch.arange(IMAGES) % 7)  # type: ignore[attr-defined]
    loader = replace(one.loader, train=split, val=split)
    torch.manual_seed(0)
    ours = build_trainer(one.config, build("resnet8", num_classes=9), loader, group, CPU)
    metrics = ours.evaluate()
    assert metrics is not None
    return {**asdict(metrics), "answers": ours.val_answers, "classes": ours.count_classes(9)}


def work(rank: int, folder: Path) -> None:
    """Train every network as one of two workers, whole and resumed, and leave what both have."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = ProcessGroup(rank, 2)
    left = {}
    for name, mode in WITH_WORKERS:
        options, file = MODES[mode], folder / f"{name}-{mode}.safetensors"
        whole, (_, epoch) = run(trainer(name, group, **options))
        run_to(trainer(name, group, **options), 2, file)
        resumed = trainer(name, group, seed=9, **options)
        checkpoint.restore(checkpoint.read(file), resumed)
        left[name, mode] = {"whole": whole, "resumed": run(resumed)[0], "val_loss": epoch.val_loss}
    torch.save((left, evaluated(group)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_network_trains_with_two_workers(tmp_path: Path) -> None:
    """With gloo, to the same bytes on both, also where it is resumed within an epoch, with one worker's metrics."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    (first, metrics), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = evaluated(ProcessGroup())
    for each in (metrics, others):
        assert torch.equal(each.pop("answers"), alone["answers"])
        assert each.pop("loss") == pytest.approx(alone["loss"], rel=1e-6)
        assert each == {name: alone[name] for name in each}
    assert others.keys() == {"error", "top5_error", "macro_recall", "macro_f1", "classes"}
    assert [images for _, images in alone["classes"]] == [4, 3, 3, 3, 3, 3, 3, 0, 0]
    assert first.keys() == set(WITH_WORKERS)
    for (name, mode), ended in first.items():
        assert_same_bytes(ended["whole"], ended["resumed"])
        assert_same_bytes(ended["whole"], second[name, mode]["whole"])
        assert ended["val_loss"] == second[name, mode]["val_loss"]
