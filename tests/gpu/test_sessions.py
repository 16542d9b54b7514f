"""Buffers that stay on the GPU and replayed graphs give what a plain run gives; `bench` has a row for each of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_ops.export import graph, precision, runtime, untrusted
from resnet_ops.export.bench_worker import BenchCandidate, list_candidates
from tests.conftest import DigitFiles, Ended
from tests.export.samples import copy, finish
from tests.gpu.conftest import succeeded
from tests.gpu.hardware import PROVIDER

Cli = Callable[..., Ended]
VARIANTS = ("", ", NHWC", ", CUDA graph", ", NHWC, CUDA graph") if PROVIDER == "cuda" else ("",)
BATCHES = (1, 5, 32)


@pytest.fixture(scope="module")
def half_file(digit_files: DigitFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' network in fp16."""
    checkpoint = digit_files.checkpoint
    x = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)
    model, choice = precision.to_fp16(graph.to_onnx(checkpoint.info, checkpoint.model, 18), x)
    file = tmp_path_factory.mktemp("half") / "fp16.onnx"
    graph.write(finish(copy(model), checkpoint, precision="fp16", precision_choice=choice), file)
    return file


def candidates(file: Path) -> list[BenchCandidate]:
    provider = runtime.resolve_provider(PROVIDER)
    listed = list_candidates(file, untrusted.check_file(file), provider, compiled=False)
    return [candidate for candidate in listed if candidate.engine == "onnx"]


def outputs_of(call: Callable[[], Any]) -> np.ndarray:
    """Return what a candidate's call leaves: an array, or its tensors on the GPU, the outputs last."""
    result = call()
    outputs = result[-1] if isinstance(result, tuple) else result
    return np.asarray(outputs.cpu() if hasattr(outputs, "cpu") else outputs)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", ["normalized", "raw", "fp16"])
def test_every_setting_gives_what_a_plain_run_gives(
    form: str, batch: int, digit_files: DigitFiles, half_file: Path
) -> None:
    file = half_file if form == "fp16" else getattr(digit_files, form)
    session = runtime.create_session(file, runtime.resolve_provider(PROVIDER))
    listed = candidates(file)
    x = listed[0]._random_input(batch).numpy()
    expected = session.run(x)
    scale = np.abs(expected).max()
    assert {candidate.name.removeprefix("ONNX Runtime") for candidate in listed} >= (
        {", fp16" + variant for variant in VARIANTS} if form == "fp16" and PROVIDER == "cuda" else set(VARIANTS)
    )
    for candidate in listed:
        call = candidate.prepare(batch)
        limit = 2e-2 if candidate.arithmetic != "fp32" else 1e-4
        for _ in range(3):  # a graph is captured, then replayed
            assert np.abs(outputs_of(call) - expected).max() <= limit * scale, candidate.name


def test_a_session_serves_batches_of_any_size_in_any_order(digit_files: DigitFiles) -> None:
    """What is bound for one size must not leak into the next."""
    session = runtime.create_session(digit_files.normalized, runtime.resolve_provider(PROVIDER))
    plain = runtime.create_session(digit_files.normalized, runtime.CPU)
    random = np.random.default_rng(0)
    for size in (1, 8, 3, 32, 1, 64, 7, 8, 1):
        x = random.standard_normal((size, 1, 8, 8)).astype(np.float32)
        expected = plain.run(x)
        assert np.abs(session.run(x) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("form", ["normalized", "raw", "fp16"])
def test_bench_has_a_row_for_every_setting(form: str, cli: Cli, digit_files: DigitFiles, half_file: Path) -> None:
    file = half_file if form == "fp16" else getattr(digit_files, form)
    result = succeeded(
        cli("bench", file, "--provider", PROVIDER, "--batch", 8, "--seconds", 0.2, "--no-compile", "--json")
    )
    rows = {row["name"]: row for row in result["rows"]}
    arithmetics = {""}
    if PROVIDER == "cuda":
        arithmetics = {", fp16"} if form == "fp16" else {"", ", tf32"}
    for arithmetic in arithmetics:
        for variant in VARIANTS:
            assert rows[f"ONNX Runtime{arithmetic}{variant}"].get("error") is None
    assert sum(name.startswith("torch eager") for name in rows) == len(arithmetics)
    assert all(row["memory_bytes"] > 0 for row in rows.values() if "error" not in row)
    assert all(row["images_per_second"] > 0 for row in rows.values())
