"""The loop inside a Ray Train worker: what a cluster adds to it (rank, share, checkpoint, report)."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from resnet_ops.data.loader import Loader, open_loader
from resnet_ops.data.sources import open_source
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.models import build
from resnet_ops.runs import Epoch, Run, RunRecord
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import CheckpointInfo, Checkpoints
from resnet_ops.training.loop import Progress, Training, World, prepare


@dataclass(frozen=True)
class Outcome:
    """When a worker's first and last steps ended, in seconds since 1970; () where none was left to do."""

    steps_at: tuple[float, ...]


def work(job: dict[str, Any]) -> Outcome:
    """Train the run in `job["run"]` (a path) with `job["threads"]` threads, from where it stands.

    Raises:
        UserError: The loss diverged, the device's memory is full, the disk is full.
    """
    torch.set_num_threads(job["threads"])
    run = Run(Path(job["run"]))
    record = run.read()
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device() if record.device == "cuda" else torch.device("cpu")
    try:
        return _train(run, record, world, device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The memory of {device} is full: {str(error).splitlines()[0]}",
            f"Try a --batch-size below {record.config.batch_size}.",
            exit_code=WORK_FAILED,
        ) from error


def _train(run: Run, record: RunRecord, world: World, device: torch.device) -> Outcome:
    config = record.config
    leads = world.rank == 0
    if leads:
        run.write_progress({"stage": f"Reading {config.data}"})
    assert config.crop_padding is not None  # settled, like flip, before the run was created
    assert config.flip is not None
    loader = open_loader(
        open_source(config.data),
        device,
        batch_size=config.batch_size,
        crop_padding=config.crop_padding,
        flip=config.flip,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
    )
    torch.manual_seed(config.seed)
    network = build(
        config.model,
        num_classes=len(record.data.class_names),
        in_channels=record.data.channels,
        shortcut=config.shortcut,
    )
    training = prepare(config, network, loader, world, device)
    keeper = Checkpoints(run, config.num_to_keep)
    _resume(training, keeper)

    steps_at: list[float] = []

    def after_step(progress: Progress) -> None:
        steps_at[1:] = [time.time()]  # the first one stays
        if leads:
            run.write_progress({"stage": "Training", **vars(progress)})

    for epoch in training.run(after_step):
        if leads:
            keeper.save(_info(record, loader, epoch), training.network, training.optimizer)
            run.append_epoch(epoch)
        ray.train.report(epoch.model_dump())
    return Outcome(tuple(steps_at))


def _resume(training: Training, keeper: Checkpoints) -> None:
    """Go on from the last whole checkpoint, if there is one: rank 0 chooses, every rank reads it."""
    chosen: list[Path | None] = [None]
    if training.world.rank == 0:
        latest, _ = keeper.latest()
        chosen = [latest.path if latest else None]
        keeper.rewind(latest)
    if training.world.size > 1:
        dist.broadcast_object_list(chosen)
    if chosen[0] is not None:
        checkpoint = checkpoints.read(chosen[0])
        checkpoints.restore(checkpoint, training.network, training.optimizer)
        training.epoch = checkpoint.info.metrics.epoch


def _info(record: RunRecord, loader: Loader, epoch: Epoch) -> CheckpointInfo:
    data = record.data
    return CheckpointInfo(
        model=record.config.model,
        shortcut=record.config.shortcut,
        class_names=data.class_names,
        channels=data.channels,
        height=data.height,
        width=data.width,
        mean=loader.mean,
        std=loader.std,
        data=data.name,
        data_fingerprint=data.fingerprint,
        metrics=epoch,
    )
