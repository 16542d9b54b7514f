"""A search on a Ray that claims one GPU, shared by two trials that compute on the CPU; run as a process of its own.

Each trial notes what it sees; the first is refused memory once, as a trial beside others may be.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch

from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.trial_slots import TrialResources, TrialSlots, share_gpus
from resnet_ops.tuning import job
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import read_space


def note(session: Any) -> None:
    """Write what a trial sees of its GPU."""
    run = session.run.path
    if run.name == "001" and not (run / "refused").exists():
        (run / "refused").touch()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of...")
    gpu = ray.get_runtime_context().get_assigned_resources()["GPU"]
    seen = {"gpu": gpu, "ids": ray.get_gpu_ids(), "visible": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}
    (run / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    from tests.tuning import shared_gpus_search  # whose functions the workers can import

    node = Node("", "here", 2, 1, 2, 1)
    shared, _ = share_gpus(TrialSlots((node,), True, "cpu", 1, 1.0, 1), TrialResources(), 2, 2)
    job.allocate_trials = lambda *_: contextlib.nullcontext(shared)  # type: ignore[assignment]
    given = {"runs_dir": Path(sys.argv[1]), "name": "s", "epochs": 3}
    config = TuneConfig.of(depths="8", lr="0.05,0.1", search="grid", scheduler="none", given=given)
    kind = job.SearchKind("tune", shared_gpus_search.note)
    result = job.search_space(config, read_space(config), kind=kind)
    sys.stdout.write(json.dumps([(trial.status, trial.epochs, trial.reason) for trial in result.trials]))
