"""Fixtures of the tests for a GPU, all skipped where there is none."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import resnet_ops
from tests.conftest import Ended
from tests.gpu.hardware import ABSENT, DEVICE

ROOT = Path(__file__).parents[2]
# cuBLAS reads it when CUDA is first used, which may be before a test asks for determinism.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if importlib.util.find_spec("resnet_ops.cli") is None:
    # A wheel in another folder is hidden by the checkout's own package, which has its command line beside it.
    resnet_ops.__path__.append(str(ROOT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if ABSENT:
                item.add_marker(pytest.mark.skip(reason=ABSENT))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command in this process, as `python -m resnet_ops` does."""
    from resnet_ops.cli.main import run

    def ended(*arguments: object) -> Ended:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return ended


def start(*arguments: object, cwd: Path, **options: Any) -> "subprocess.Popen[str]":
    """Start a command as a process of its own, outside of the checkout: what is installed there is what runs."""
    command = [sys.executable, "-m", "resnet_ops", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def command(*arguments: object, cwd: Path, timeout_s: float = 240, **options: Any) -> Ended:
    """Run a command as a process of its own, to its end."""
    process = start(*arguments, cwd=cwd, **options)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def succeeded(ended: Ended) -> dict[str, Any]:
    """Return the JSON of a command that did not fail."""
    assert ended.code == 0, ended.err
    result: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    return result


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Leave torch as it was, and the GPU's memory to the other tests."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
    if DEVICE.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.fixture
def reproducible(settings_of_torch: None) -> None:
    """Have torch choose the same kernels each time, so that what differs is the step and not its kernels."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
