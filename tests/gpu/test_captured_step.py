"""A step that is one CUDA graph computes what its kernels compute when they are launched one by one."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_ops.data.loader import DeviceImages
from resnet_ops.errors import UserError
from resnet_ops.training import checkpoint
from resnet_ops.training.checkpoint import CheckpointInfo
from tests.data.samples import shades, write_class_folders
from tests.export.samples import EPOCH
from tests.gpu.hardware import CAPTURE, DEVICE, REHEARSAL, cuda_itself
from tests.gpu.training import (
    Change,
    Outcome,
    assert_same_bytes,
    load,
    prepare,
    run,
    settle,
    with_dropout,
)

MIXED = {"mixup": 0.4, "cutmix": 1.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop and flip": {"crop_padding": 2, "flip": True},
    "random resized crop": {"random_resized_crop": True, "flip": True},
    "cutout": {"cutout": 3},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "mixup or cutmix": MIXED,
    "label smoothing": {"label_smoothing": 0.1},
    "mixed and smoothed": MIXED | {"label_smoothing": 0.1},
    "focal loss": {"focal_gamma": 2.0},
    "focal loss of mixed labels": MIXED | {"focal_gamma": 0.5},
    "accumulation": {"accumulate": 4},
    "accumulation of uneven parts": {"accumulate": 3},
    "average of weights": {"ema": 0.9},
    "clipping": {"clip_grad_norm": 0.5},
    "nesterov": {"nesterov": True, "weight_decay": 5e-4, "norm_weight_decay": 0.0},
    "steps with warm-up": {"schedule": "steps", "milestones": "0.3,0.7", "warmup_steps": 5},
    "constant warm-up": {"schedule": "cosine", "warmup_steps": 7, "warmup": "constant"},
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "fp16 accumulated and clipped": {"precision": "fp16", "accumulate": 2, "clip_grad_norm": 0.5},
    "AdamW": {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "norm_weight_decay": 0.0},
    "AdamW in fp16": {"optimizer": "adamw", "lr": 2e-3, "precision": "fp16", "ema": 0.9},
    "another rate of the head": {"head_lr": 5.0, "lr": 0.02},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "frozen at first": {"freeze_epochs": 1},  # another step is captured in the second epoch
    "AdamW, frozen at first": {"freeze_epochs": 1, "freeze": "layer2", "optimizer": "adamw", "lr": 2e-3},
    "statistics frozen": {"freeze_batchnorm": True, "lr": 0.01},
    "NCHW": {"channels_last": False},
    "residual branches from zero": {"zero_init_residual": True},
    "all at once": MIXED | {
        "random_resized_crop": True, "flip": True, "cutout": 2, "label_smoothing": 0.1, "accumulate": 2, "ema": 0.9,
        "clip_grad_norm": 1.0, "nesterov": True, "norm_weight_decay": 0.0,
    },
}  # fmt: skip
SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of other sizes than the network's, to be resized: 200 to train on, 40 to validate."""
    root = tmp_path_factory.mktemp("images")
    for split, count, seed in (("train", 100, 0), ("val", 20, 1)):
        write_class_folders(root / split, shades({"dark": 90, "light": 160}, count, (40, 33), seed))
    return root


def both(options: dict[str, Any], change: Change | None = None) -> tuple[Outcome, Outcome]:
    """Train the same twice, uncaptured and captured."""
    eager = run(prepare(settle(**options, cuda_graph="off"), change))
    captured = run(prepare(settle(**options, cuda_graph=CAPTURE), change))
    assert (eager.captured, captured.captured) == (False, DEVICE.type == "cuda")
    return eager, captured


def assert_same(eager: Outcome, captured: Outcome) -> None:
    assert captured.sums == eager.sums
    assert captured.epochs == eager.epochs
    assert_same_bytes(captured.tensors, eager.tensors)


def assert_close(eager: Outcome, captured: Outcome) -> None:
    """Other kernels round otherwise, which training makes larger with each step."""
    for one, other in zip(eager.sums[:3], captured.sums[:3], strict=True):
        assert other[0] == pytest.approx(one[0], rel=2e-2)
    assert captured.epochs[0]["train_loss"] == pytest.approx(eager.epochs[0]["train_loss"], rel=0.1)
    assert captured.epochs[-1]["val_error"] == pytest.approx(eager.epochs[-1]["val_error"], abs=0.2)
    assert [epoch["lr"] for epoch in captured.epochs] == [epoch["lr"] for epoch in eager.epochs]


@pytest.mark.parametrize("name", OPTIONS)
def test_captured_steps_are_the_same_to_the_bit(name: str, reproducible: None) -> None:
    assert_same(*both(OPTIONS[name] | {"deterministic": True}))


@pytest.mark.parametrize("name", OPTIONS)
def test_captured_steps_are_close_with_any_kernels(name: str) -> None:
    assert_close(*both(OPTIONS[name]))


def test_what_is_dropped_is_the_same(reproducible: None) -> None:
    eager, captured = both({"deterministic": True}, with_dropout)
    assert_same(eager, captured)
    assert eager.sums != run(prepare(settle(seed=1, deterministic=True, cuda_graph="off"), with_dropout)).sums


@pytest.mark.parametrize("stream", ["on", "off"])
@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_images_that_are_resized_and_streamed_are_the_same(
    folder: Path, stream: str, crop: str, reproducible: None, ray_session: None
) -> None:
    options = {"data": str(folder), "image_size": SIDE, "batch_size": 32, "stream": stream, "deterministic": True}
    assert_same(*both(options | {"random_resized_crop": crop == "resized", "flip": True}))


def test_images_that_stay_on_the_host_are_the_same(reproducible: None) -> None:
    config = settle(deterministic=True, cuda_graph=CAPTURE, crop_padding=1)
    loader = load(config)
    assert isinstance(loader.train, DeviceImages)
    on_host = replace(loader, train=DeviceImages(loader.train.pixels.cpu(), loader.train.labels))
    assert_same(run(prepare(config, loader=loader)), run(prepare(config, loader=on_host)))


@pytest.mark.parametrize("captured", [False, True])
def test_a_compiled_network_composes_with_it(captured: bool) -> None:
    plain = run(prepare(settle(cuda_graph="off")))
    compiled = run(prepare(settle(cuda_graph=CAPTURE if captured else "off", compile="default")))
    assert compiled.captured == (captured and not REHEARSAL)
    assert_close(plain, compiled)


def test_steps_are_captured_by_default() -> None:
    trainer = prepare(settle(epochs=1))
    assert run(trainer).captured == (DEVICE.type == "cuda")
    assert bool(trainer.step_runner.why_not) == REHEARSAL


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_captured_steps_whose_gradients_overflow_are_skipped(optimizer: str, reproducible: None) -> None:
    """The first ones are launched one by one, the others are in the graph; the same are skipped, and counted."""
    outcomes = []
    for how in ("off", CAPTURE):
        trainer = prepare(settle(precision="fp16", optimizer=optimizer, lr=2e-3, deterministic=True, cuda_graph=how))
        assert trainer.scaler is not None
        trainer.scaler.load_state(trainer.scaler.state() | {"scale": torch.tensor(2.0**28)})
        epochs = [epoch for epoch in trainer.run(lambda _: None) if epoch is not None]
        assert epochs[0].skipped_steps > 4  # of 12, of which four are before the capture
        assert epochs[1].skipped_steps < 12
        outcomes.append(([epoch.skipped_steps for epoch in epochs], checkpoint.collect(trainer)))
    (eager_skips, eager), (captured_skips, captured) = outcomes
    assert captured_skips == eager_skips
    assert_same_bytes(captured, eager)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["off", CAPTURE])
def test_torch_has_nothing_to_say_of_adamw(how: str) -> None:
    run(prepare(settle(epochs=1, optimizer="adamw", lr=2e-3, precision="fp16", cuda_graph=how)))


@cuda_itself
def test_gradient_checkpointing_takes_less_of_the_gpus_memory() -> None:
    peaks = []
    for checkpointed in (False, True):
        trainer = prepare(settle(model="resnet56", epochs=1, cuda_graph="off", gradient_checkpointing=checkpointed))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(trainer)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.6 * peaks[0], peaks


@pytest.mark.parametrize("more", [{}, {"optimizer": "adamw", "lr": 2e-3, "precision": "fp16"}], ids=["sgd", "adamw"])
@pytest.mark.parametrize("captured", [False, True])
def test_what_is_saved_within_an_epoch_goes_on_to_the_same_bytes(
    captured: bool, more: dict[str, Any], tmp_path: Path, reproducible: None
) -> None:
    """Restored into a trainer whose graph is not there yet, while the first one's goes on."""
    config = settle(
        ema=0.9, crop_padding=1, cutout=2, mixup=0.2, deterministic=True, cuda_graph=CAPTURE if captured else "off",
        **more,
    )  # fmt: skip
    first, second = prepare(config), prepare(config)
    file = tmp_path / "within.safetensors"
    for epoch in first.run(lambda _: None, lambda step: step == 17):  # 12 steps an epoch
        if epoch is None:
            info = CheckpointInfo(
                model="resnet8", shortcut="A", class_names=tuple("0123456789"), channels=1, height=8, width=8,
                mean=(0.3,), std=(0.4,), data="digits", data_fingerprint="0", metrics=EPOCH, step=first.step,
            )  # fmt: skip
            checkpoint.save(file, info, checkpoint.collect(first))
    checkpoint.restore(checkpoint.read(file), second)
    assert (second.epoch, second.step) == (1, 5)
    assert_same_bytes(run(second).tensors, checkpoint.collect(first))


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(UserError, match=r"diverged in epoch [12]: the loss is (nan|inf).*smaller --lr"):
        run(prepare(settle(lr=1e6, cuda_graph=CAPTURE)))


def test_two_captured_trainings_in_one_process_do_not_meet(reproducible: None) -> None:
    """Each graph has its own memory: steps of one between those of the other change nothing."""
    config = settle(deterministic=True, cuda_graph=CAPTURE)
    alone = run(prepare(config))
    first, second = prepare(config), prepare(config.model_copy(update={"seed": 5}))
    for one, other in zip(first.run(lambda _: None, _always), second.run(lambda _: None, _always), strict=True):
        assert (one is None) == (other is None)
    assert_same_bytes(checkpoint.collect(first), alone.tensors)


def _always(_: int) -> bool:
    return True


def test_of_a_captured_step_the_cpu_launches_nothing_but_the_graph() -> None:
    launches = {}
    for how in ("off", CAPTURE):
        trainer = prepare(settle(epochs=3, crop_padding=1, flip=True, ema=0.9, cuda_graph=how))
        epochs = trainer.run(lambda _: None)
        next(epochs)
        next(epochs)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if DEVICE.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            next(epochs)
        launches[how] = Counter({event.key: event.count for event in profile.key_averages()})
    if DEVICE.type == "cuda":
        eager, captured = (
            sum(count for name, count in launches[how].items() if "LaunchKernel" in name) for how in ("off", CAPTURE)
        )
        assert captured < 0.2 * eager, launches[CAPTURE].most_common(20)  # those of the validation are left
        assert launches[CAPTURE]["cudaGraphLaunch"] >= 11
    else:
        assert launches["off"]["aten::convolution"] == launches[CAPTURE]["aten::convolution"] > 0


def reads_a_value(network: torch.nn.Module) -> None:
    """Wait for the GPU in each forward pass, which no graph can hold."""
    network.register_forward_hook(lambda _module, _inputs, output: output * float(output.detach().abs().max() >= 0))


@cuda_itself
def test_a_step_that_cannot_be_captured_goes_on_as_it_is(reproducible: None) -> None:
    eager = run(prepare(settle(deterministic=True, cuda_graph="off"), reads_a_value))
    trainer = prepare(settle(deterministic=True, cuda_graph="auto"), reads_a_value)
    uncaptured = run(trainer)
    assert_same(eager, uncaptured)
    assert not uncaptured.captured
    assert trainer.step_runner.why_not
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    with pytest.raises(UserError, match=r"--cuda-graph on: the step cannot be captured"):
        run(prepare(settle(cuda_graph="on"), reads_a_value))


@cuda_itself
def test_tf32_is_not_what_makes_them_agree(reproducible: None) -> None:
    """In true fp32 the loss of the first step is that of the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    try:
        config = settle(precision="fp32", deterministic=True, cuda_graph=CAPTURE, epochs=1)
        ours = run(prepare(config))
        cpu = torch.device("cpu")
        loader = load(config, cpu)
        x, y = next(iter(loader.train_batches(0)))
        network = prepare(config).network.to(cpu).double()
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(network.train()(x.double()), y, reduction="sum").item()
        assert ours.sums[0][0] == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(ours.epochs[0]["val_loss"])
    finally:
        torch.backends.cudnn.allow_tf32 = True
