"""What tests share: the command line reached through its entry point, and one run trained for all."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_ops.config import TrainConfig
from resnet_ops.orchestration.connect import local_ray
from resnet_ops.training import job

CIFAR10 = Path(os.environ.get("RESNET_OPS_CIFAR10", Path(__file__).parents[2] / "shared/data/cifar10"))
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="CIFAR-10 in Parquet is not there; RESNET_OPS_CIFAR10 can name its folder"
)
# `nohup make test &` runs tests with SIGINT ignored, which commands started by them would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
COMMAND = [str(Path(sys.executable).with_name("resnet-ops"))]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images are kept for these tests only; processes that they start inherit it."""
    os.environ["RESNET_OPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        result: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return result


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run a command in this process, the way the console script does."""
    (script,) = entry_points(group="console_scripts", name="resnet-ops")
    main = script.load()

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["resnet-ops", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


def command(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command as a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False, **options
    )


@pytest.fixture(scope="session")
def threads() -> int:
    """Threads of the worker that trains in this process, as `train` sets them."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> job.TrainResult:
    """What `resnet-ops train` does with no options."""
    return job.train(TrainConfig.of(runs_dir=tmp_path_factory.mktemp("runs"), name="default"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray on this machine for every test that needs several workers."""
    with local_ray(max(2, len(os.sched_getaffinity(0))), 0):
        yield
