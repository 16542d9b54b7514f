"""A step that CUDA can capture: nothing of it waits for the device, and what differs from step to step stays in place.

That it is captured, and replayed to the same bits, is shown on a GPU: see tests/gpu.
"""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import BLOCK_STEPS, DeviceImages, Loader
from resnet_ops.models import build
from resnet_ops.training.build import build_trainer, obstacle_to_capture
from resnet_ops.training.capture import StepInputs
from resnet_ops.training.compile_trial import CompileTrial
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.loss import weigh_classes
from resnet_ops.training.trainer import Trainer
from tests.data.test_loader import pixels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AUGMENTATIONS = {
    "none": Augmentation(),
    "crop": Augmentation(2, True),
    "smaller": Augmentation(flip=True, size=(12, 10)),
    "resized": Augmentation(flip=True, random_resized_crop=True, size=(12, 10)),
    "trivial": Augmentation(trivial_augment=True, color_jitter=0.4),
    "rand": Augmentation(2, rand_augment=(2, 9), random_erasing=0.5),
    "jitter": Augmentation(color_jitter=0.4),
    "cutout": Augmentation(cutout=4),
    "mixup": Augmentation(mixup=0.4, classes=10),
    "cutmix": Augmentation(2, cutmix=1.0, classes=10),
    "all": Augmentation(2, True, cutout=4, mixup=0.4, cutmix=1.0, classes=10),
}
# Each reads a value of the device, sends one there, or has a result whose size depends on values.
WAITING = {"_local_scalar_dense", "lift_fresh", "lift_fresh_copy", "nonzero", "equal", "masked_select"}


def loader(augmentation: Augmentation, images: int = 64) -> Loader:
    split = DeviceImages(pixels(images, 16, 16, 3), torch.arange(images) % 10)
    return Loader(split, split, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), 8, augmentation, 0)


def trainer(augmentation: Augmentation, **options: object) -> Trainer:
    config = TrainConfig.of(model="resnet8", epochs=2, batch_size=8, **options)
    torch.manual_seed(0)
    weights = weigh_classes(config, tuple("0123456789"), torch.arange(64) % 10)
    network = build("resnet8", num_classes=10)
    return build_trainer(config, network, loader(augmentation), ProcessGroup(), CPU, class_weights=weights)


class Operators(TorchDispatchMode):
    """Notes the names of torch's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_batch_is_made_on_the_gpu_alone(augmentation: Augmentation) -> None:
    """Of tensors that claim to be on a GPU: torch refuses what would mix them with others, or read a value of one."""
    columns = next(loader(augmentation).blocks(0)).columns
    mode = FakeTensorMode()
    with mode, CUDA:
        images = DeviceImages(torch.empty(64, 16, 16, 3, dtype=torch.uint8), torch.empty(64, dtype=torch.int64))
        there = Loader(images, images, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), 8, augmentation, 0)
        inputs = {name: torch.empty(rows.shape[1:], dtype=rows.dtype) for name, rows in columns.items()}
        there.normalizer  # noqa: B018  (sent once)
    with mode, Operators() as seen:
        x, y = there.batch(inputs, None)
    assert not seen.names & WAITING
    assert (x.device.type, x.shape) == ("cuda", (8, 3, *(augmentation.size or (16, 16))))
    assert (y.device.type, len(y)) == ("cuda", 8)


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"nesterov": True, "class_weights": "balanced"}, "_fused_sgd_"),
        ({"optimizer": "adamw", "precision": "fp16", "head_lr": 10.0, "focal_gamma": 2.0}, "_fused_adamw_"),
    ],
)
def test_a_step_waits_for_nothing(options: dict[str, Any], kernel: str) -> None:
    ours = trainer(
        AUGMENTATIONS["all"], ema=0.9, clip_grad_norm=1.0, accumulate=3, label_smoothing=0.1, norm_weight_decay=0.0,
        **options,
    )  # fmt: skip
    block = next(ours.loader.blocks(0))
    ours.inputs.load(block.columns | ours.schedules(range(block.steps)))
    ours.step_runner(ours.parts)  # the first makes momentum and what else stays
    with Operators() as seen:
        ours.step_runner(ours.parts)
    assert {"convolution", "convolution_backward", kernel, "lerp_"} <= seen.names
    assert not seen.names & WAITING


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "head_lr": 10.0, "gradient_checkpointing": True}])
def test_what_a_step_changes_stays_where_it_is(options: dict[str, Any]) -> None:
    ours = trainer(AUGMENTATIONS["crop"], ema=0.9, **options)

    def places() -> list[int]:
        state = [tensor for each in ours.optimizer.state.values() for tensor in each.values()]
        rates = [rate for rate, _ in ours.learning_rates.values()]
        kept = [*ours.network.state_dict().values(), *ours.eval_network.state_dict().values(), *state]
        return [tensor.data_ptr() for tensor in (*kept, ours.totals, *rates, ours.inputs.step)]

    before = None
    for _ in ours.run(lambda _: None, lambda step: step in (1, 5)):
        before = before or places()
        assert places() == before
    assert ours.epoch == 2


def test_steps_are_loaded_in_blocks_from_any_step_on() -> None:
    ours = loader(AUGMENTATIONS["all"], images=8 * (2 * BLOCK_STEPS + 3))
    blocks = list(ours.blocks(1))
    assert [block.steps for block in blocks] == [BLOCK_STEPS, BLOCK_STEPS, 3]
    later = list(ours.blocks(1, start=BLOCK_STEPS - 1))
    assert [block.steps for block in later] == [BLOCK_STEPS, 4]
    inputs = StepInputs(CPU, BLOCK_STEPS)
    for start, each in ((0, blocks), (BLOCK_STEPS - 1, later)):
        rows = []
        for block in each:
            inputs.load(block.columns)
            for _ in range(block.steps):
                rows.append(inputs.row())
                inputs.advance()
        whole = {name: torch.cat([block.columns[name] for block in blocks]) for name in rows[0]}
        for step, row in enumerate(rows, start):
            assert all(torch.equal(row[name], whole[name][step]) for name in whole)


@pytest.mark.parametrize(
    ("options", "workers", "overlaps", "obstacle"),
    [
        ({}, 1, False, None),
        ({"cuda_graph": "on", "compile": "default", "accumulate": 4, "ema": 0.9}, 1, False, None),
        ({"cuda_graph": "off"}, 1, False, "--cuda-graph off"),
        ({"fused": False}, 1, False, "--no-fused"),
        ({"sync_batchnorm": True}, 1, False, None),
        ({"sync_batchnorm": True}, 2, True, "--sync-batchnorm"),
        ({}, 2, False, None),
        ({}, 2, True, "gradients"),
    ],
)
def test_what_is_in_the_way_of_a_capture_is_said(
    options: dict[str, object], workers: int, overlaps: bool, obstacle: str | None
) -> None:
    said = obstacle_to_capture(TrainConfig.of(**options), ProcessGroup(size=workers), CUDA, overlaps)
    assert (said is None) if obstacle is None else (said or "").startswith(obstacle) or obstacle in (said or "")


def test_on_a_cpu_a_capture_is_refused() -> None:
    from resnet_ops.errors import UserError
    from resnet_ops.training.preflight import check_training

    with pytest.raises(UserError, match=r"--cuda-graph on needs a GPU.*auto"):
        check_training(TrainConfig.of(cuda_graph="on"), "cpu")
    assert "CPU" in (obstacle_to_capture(TrainConfig(), ProcessGroup(), CPU, False) or "")


def test_a_run_of_an_earlier_version_is_compiled_without_its_graphs(tmp_path: Path) -> None:
    assert TrainConfig.model_validate({"compile": "reduce-overhead", "runs_dir": tmp_path}).compile == "default"


def test_the_compiler_is_tried_where_training_is_long_enough_to_repay_it() -> None:
    plain, events = nn.Linear(2, 2), []

    def after_epoch(
        trial: CompileTrial, network: nn.Module, steps: int, speed: float, remaining_s: float = 3000
    ) -> nn.Module | None:
        return trial.after_epoch(network, lambda _: None, steps, speed, remaining_s)

    short = CompileTrial(events.append)
    assert after_epoch(short, plain, 100, 1000.0, remaining_s=300) is None
    assert after_epoch(short, plain, 100, 1000.0) is None  # settled
    for compiled_speed, stays in ((1100.0, True), (900.0, False)):
        long = CompileTrial(events.append)
        assert after_epoch(long, plain, 3, 1.0) is None  # of too few steps to tell
        compiled = after_epoch(long, plain, 100, 1000.0)
        assert isinstance(compiled, OptimizedModule)
        assert after_epoch(long, compiled, 0, 0.0) is None  # of too few again
        assert after_epoch(long, compiled, 100, compiled_speed) is (None if stays else plain)
        assert after_epoch(long, compiled, 100, 1.0) is None
    assert events == [f"--compile auto: compiled, steps are 10% {word}." for word in ("faster", "slower")]


def test_a_network_that_cannot_be_compiled_goes_on_as_it_is() -> None:
    events: list[str] = []

    def fails(network: nn.Module) -> None:
        raise RuntimeError("no C compiler\nat ...")

    assert CompileTrial(events.append).after_epoch(nn.Linear(2, 2), fails, 100, 1.0, remaining_s=9e9) is None
    assert events == ["--compile auto: the network cannot be compiled here: no C compiler"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_rehearsal_changes_nothing(fails: bool) -> None:
    ours = trainer(AUGMENTATIONS["resized"], compile="auto", accumulate=3)
    assert ours.compile_trial is None  # on a CPU
    before = {name: value.clone() for name, value in ours.network.state_dict().items()}
    shapes = []

    def record(_module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        shapes.append(inputs[0].shape)
        return output.detach() if fails else output  # of which there is no gradient

    ours.network.register_forward_hook(record)
    with pytest.raises(RuntimeError, match="grad") if fails else contextlib.nullcontext():
        ours.rehearse(ours.network.train())
    assert shapes == [(3, 3, 12, 10)]
    assert all(parameter.grad is None for parameter in ours.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in ours.network.state_dict().items())


class Event:
    """What `StepInputs` asks of torch.cuda.Event."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def test_columns_keep_their_place_however_few_steps_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a training is resumed near the end of an epoch; on a device that holds no values."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    inputs = StepInputs(torch.device("meta"), BLOCK_STEPS)
    places = []
    for steps in (3, BLOCK_STEPS, 5):
        inputs.load({"rows": torch.zeros(steps, 8, dtype=torch.int64)})
        places.append(inputs.columns["rows"])
    assert places[0] is places[1] is places[2]
    assert places[0].shape == (BLOCK_STEPS, 8)
