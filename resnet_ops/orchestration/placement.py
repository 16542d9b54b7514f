"""How many workers, on which devices, with how many threads each; refuses what does not fit."""

import os
from dataclasses import dataclass

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError


@dataclass(frozen=True)
class Placement:
    """Workers of a job on this machine.

    One worker runs in this very process (Ray Train's local mode): 4 s from the shell to its
    first step instead of 20.
    """

    workers: int
    device: str
    threads: int  # CPU cores of each worker

    @property
    def in_process(self) -> bool:
        """Whether no other process is needed."""
        return self.workers == 1


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def place(config: TrainConfig) -> Placement:
    """Place a job on this machine: by default one worker a GPU, or one with all CPU cores.

    Raises:
        UserError: More workers than GPUs or cores, or CUDA where there is none.
    """
    have_gpus = gpus() if config.device != "cpu" else 0
    if config.device == "cuda" and not have_gpus:
        raise UserError(
            "--device cuda: no CUDA GPU can be used here.", "See why: resnet-ops doctor; or train with --device cpu."
        )
    device, available, unit = ("cuda", have_gpus, "GPU") if have_gpus else ("cpu", cores(), "CPU core")
    workers = config.workers_per_node or (have_gpus or 1)
    if workers > available:
        raise UserError(
            f"--workers-per-node {workers} needs {workers} {unit}s; this machine has {available}.",
            f"Ask for at most {available}" + (", or train with --device cpu." if have_gpus else "."),
        )
    return Placement(workers, device, threads=max(1, cores() // workers))
