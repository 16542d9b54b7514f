"""One of several workers on one GPU, in a process of its own.

NCCL refuses two ranks on one GPU. Over gloo they take the same way through the code: DistributedDataParallel,
SyncBatchNorm, uneven shares.
"""

import json
import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from resnet_ops.orchestration.worker_loss import is_peer_error
from resnet_ops.training import checkpoint
from resnet_ops.training.distributed import ProcessGroup
from tests.gpu.hardware import DEVICE
from tests.gpu.training import prepare, settle, without_batchnorm

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Task:
    """What each rank does; `dies_at` is the step after which the last rank is gone."""

    folder: Path
    world_size: int
    options: dict[str, Any] = field(default_factory=dict)
    batchnorm: bool = True
    dies_at: int | None = None


def run_rank(rank: int, task: Task) -> None:
    """Train, and leave a file with the tensors, or one with the error."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    if task.world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{task.folder}/store", rank=rank, world_size=task.world_size,
            timeout=timedelta(seconds=TIMEOUT_S),
        )  # fmt: skip
    config = settle(precision="fp32", **task.options)
    trainer = prepare(config, None if task.batchnorm else without_batchnorm, ProcessGroup(rank, task.world_size))
    changed = time.monotonic()

    def is_due(step: int) -> bool:
        nonlocal changed
        changed = time.monotonic()
        if step == task.dies_at and rank == task.world_size - 1:
            os._exit(1)
        return False

    try:
        epochs = [epoch for epoch in trainer.run(lambda _: None, is_due) if epoch is not None]
    except Exception as error:
        waited_s = time.monotonic() - changed
        is_loss = isinstance(error, dist.DistError) or is_peer_error(error)
        told = {"type": type(error).__name__, "message": str(error), "is_loss": is_loss, "waited_s": waited_s}
        (task.folder / f"{rank}.error").write_text(json.dumps(told))
        os._exit(2)  # the group cannot be left in order any more
    torch.save(
        {
            "tensors": checkpoint.collect(trainer),
            "epochs": [epoch.model_dump() for epoch in epochs],
            "captured": trainer.step_runner.captured,
            "why_not": trainer.step_runner.why_not,
            "device": str(DEVICE),
        },
        task.folder / f"{rank}.pt",
    )
    if task.world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
