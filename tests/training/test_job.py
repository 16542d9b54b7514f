"""A job of training: the options that a run may change when it is resumed."""

from pathlib import Path
from typing import NoReturn

import pytest

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.runs import Run
from resnet_ops.training import job
from tests.test_runs import record


def test_options_that_change_on_resume_are_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "r")
    run.path.mkdir()
    run.write(record(status="interrupted"))

    def allocate(config: TrainConfig, _: object) -> NoReturn:
        raise UserError(f"{config.nodes.most} nodes, {config.max_failures} failures")

    monkeypatch.setattr(job, "allocate", allocate)
    with pytest.raises(UserError, match=r"^4 nodes, 3 failures$"):
        job.resume(tmp_path, "r", changes={"nodes": "2:4"})  # as typed
    with pytest.raises(UserError, match="--max-failures"):
        job.resume(tmp_path, "r", changes={"max_failures": -1})
