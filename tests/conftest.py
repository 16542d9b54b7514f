"""Fixtures that tests share: the command line reached through its entry point, and one trained run."""

import gc
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

# Two tests run at a time: threads that spin while they wait for each other keep the other test's from working. It is
# read when torch is imported, which what follows does.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from resnet_ops.config import TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.export import graph
from resnet_ops.orchestration.connect import local_ray
from resnet_ops.training import job
from resnet_ops.training.checkpoint import Checkpoint, read_best
from tests.export.samples import copy, finish

CIFAR10 = Path(os.environ.get("RESNET_OPS_CIFAR10", Path(__file__).parents[2] / "shared/data/cifar10"))
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="CIFAR-10 in Parquet is not there; RESNET_OPS_CIFAR10 can name its folder"
)
# `nohup make test &` runs tests with signals ignored, which commands started by them would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
COMMAND = [str(Path(sys.executable).with_name("resnet-ops"))]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have downloads refused."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the proxies of its first use in a process


@pytest.fixture(scope="session", autouse=True)
def garbage_is_seldom_looked_for() -> None:
    """torch and Ray make a million objects that stay; going through them again and again took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 1000)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images are kept for these tests only; processes that they start inherit it."""
    os.environ["RESNET_OPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Parse the last line of stdout."""
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
        monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command sets it, and for no longer
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
def trained(tmp_path_factory: pytest.TempPathFactory) -> job.TrainResult:
    """A run of ResNet-8 on the digits, to read, resume and export; it takes some seconds."""
    runs_dir = tmp_path_factory.mktemp("runs")
    return job.train(TrainConfig.of(runs_dir=runs_dir, name="trained", model="resnet8", epochs=6, cpus_per_worker=1))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray on this machine for every test that needs several workers."""
    with local_ray(max(2, len(os.sched_getaffinity(0))), 0):
        yield


@dataclass(frozen=True)
class DigitFiles:
    """A network trained on the digits, exported: a file that takes floats, and one that takes raw pixels."""

    normalized: Path
    raw: Path
    checkpoint: Checkpoint


@pytest.fixture(scope="session")
def digit_files(trained: job.TrainResult, tmp_path_factory: pytest.TempPathFactory) -> DigitFiles:
    """The network of `trained`, exported."""
    folder = tmp_path_factory.mktemp("digit-files")
    checkpoint, _ = read_best(trained.run)
    exported = graph.to_onnx(checkpoint.info, checkpoint.model, 18)
    files = DigitFiles(folder / "normalized.onnx", folder / "raw.onnx", checkpoint)
    graph.write(finish(copy(exported), checkpoint), files.normalized)
    graph.write(finish(copy(exported), checkpoint, raw=True), files.raw)
    return files


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """200 of the embedded images as PNG files, in folders, in the order that `predict` has them in."""
    folder = tmp_path_factory.mktemp("digit-images")
    encoded = open_source(TrainConfig.of()).encoded("val")
    paths = [folder / f"part {index // 50}" / f"{index}.png" for index in range(200)]
    for path, image in zip(paths, encoded.read(range(200)), strict=True):
        assert isinstance(image, bytes)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    return paths
