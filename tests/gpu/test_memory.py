"""A GPU whose memory is full says so in one line, and --auto-batch chooses what fits."""

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from resnet_ops.training import memory
from tests.conftest import Ended
from tests.gpu.conftest import succeeded
from tests.gpu.hardware import DEVICE, REHEARSAL

Cli = Callable[..., Ended]
LIMIT = 2**29  # bytes of the GPU that this process may take
NETWORK = ("--model", "resnet110", "--epochs", 1)  # 1.3 MB an image of 8x8
PROSE = r"PYTORCH|PyTorch|reserved|of which|process \d+|https?:|Tried"


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave this process little of the GPU; where there is none, only say so to what asks."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: LIMIT)
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.get_device_properties(0).total_memory)
    yield
    if DEVICE.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("captured", ["on", "off"])
def test_memory_that_is_full_is_one_short_line(
    captured: str, little_memory: None, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if REHEARSAL:
        monkeypatch.setattr("torch.nn.functional.conv2d", _out_of_memory)
        captured = "auto"
    size = ("--precision", "fp32", "--batch-size", 1024)
    ended = cli("train", *NETWORK, *size, "--cuda-graph", captured, "--runs-dir", tmp_path, "--name", "full")
    assert ended.code == 1
    (line,) = (line for line in ended.err.splitlines() if "memory of" in line)
    assert re.search(r"^error: The memory of (cuda:0|cpu) is full", line)
    assert "--batch-size" in line
    assert len(line) < 250
    assert not re.search(PROSE, ended.err), ended.err
    assert "Traceback" not in ended.err


def _out_of_memory(*_: object, **__: object) -> NoReturn:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.12 GiB is "
        "free. Process 1234 has 78.06 GiB memory in use. Of the allocated memory 77.03 GiB is allocated by PyTorch, "
        "and 0.52 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
        "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation. See documentation for Memory Management "
        "(https://docs.pytorch.org/docs/stable/notes/cuda.html)"
    )


@pytest.mark.parametrize("captured", ["on", "off"])
def test_the_batch_that_is_chosen_fits(captured: str, little_memory: None, cli: Cli, tmp_path: Path) -> None:
    """Its graph and the steps that warm it up included."""
    captured = "auto" if REHEARSAL else captured
    ended = cli(
        "train", *NETWORK, "--auto-batch", "--cuda-graph", captured, "--runs-dir", tmp_path, "--name", "auto", "--json"
    )
    succeeded(ended)
    match = re.search(r"--auto-batch chose ([\d,]+) images per step: .* each fit", ended.err)
    assert match is not None, ended.err
    assert 64 <= int(match[1].replace(",", "")) <= 1024
    if DEVICE.type == "cuda":
        assert LIMIT / 4 < torch.cuda.max_memory_allocated() < LIMIT
