"""Batches on bound buffers give what the session gives by itself: here on the CPU, where the same code runs."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_ops.errors import UserError
from resnet_ops.export import binding, runtime, untrusted
from resnet_ops.export.classifier import Classifier
from tests.conftest import DigitFiles


def images(shape: tuple[int, ...], count: int, raw: bool, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if raw:
        return generator.integers(0, 256, (count, *shape), np.uint8)
    return generator.standard_normal((count, *shape), np.float32)


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, [1]), (2, [1, 2]), (32, [1, 2, 4, 8, 16, 32]), (20, [1, 2, 4, 8, 16, 20]), (3, [1, 2, 3])],
)
def test_sizes_are_powers_of_two_and_the_largest(largest: int, sizes: list[int]) -> None:
    assert binding.batch_sizes(largest) == sizes


@pytest.mark.parametrize("captures", [False, True])  # ONNX Runtime's CPU provider takes no notice of a graph's id
@pytest.mark.parametrize("kind", ["normalized", "raw"])
def test_every_number_of_images_gives_the_same_outputs(digit_files: DigitFiles, kind: str, captures: bool) -> None:
    file = getattr(digit_files, kind)
    metadata, plain = untrusted.check_file(file), runtime.create_session(file, runtime.CPU)
    shape = binding.image_shape(metadata)
    bound = binding.BoundSession(runtime.create_session(file, runtime.CPU), shape, [4, 1, 6], captures)
    bound.prepare()
    assert (bound.provider, list(bound.batches)) == (runtime.CPU, [6, 4, 1])
    outputs = []
    for number, count in enumerate([6, 1, 3, 4, 5, 2, 6, 9, 1]):  # 9 is more than the buffers hold
        x = images(shape, count, kind == "raw", number)
        outputs.append((bound.run(x), plain.run(x)))
    for actual, expected in outputs:  # afterwards: later batches have not changed earlier outputs
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_images_of_another_size_are_run_without_buffers(digit_files: DigitFiles) -> None:
    session = runtime.create_session(digit_files.raw, runtime.CPU)
    bound = binding.BoundSession(session, binding.image_shape(untrusted.check_file(digit_files.raw)), [4])
    bound.prepare()
    x = images((11, 9, 1), 3, True, 0)
    np.testing.assert_array_equal(bound.run(x), session.run(x))


@pytest.mark.parametrize("kind", ["normalized", "raw"])
def test_a_service_decodes_to_the_shape_that_is_bound(
    digit_files: DigitFiles, digit_images: list[Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = getattr(digit_files, kind)
    metadata = untrusted.check_file(file)
    bound = binding.BoundSession(runtime.create_session(file, runtime.CPU), binding.image_shape(metadata), [8])
    bound.prepare()
    monkeypatch.setattr(bound, "_run_unbound", None)  # it is not used
    served, alone = Classifier.from_session(metadata, bound), Classifier(file, "cpu")
    pixels = served.read(*digit_images[:5])
    np.testing.assert_allclose(served.classify(pixels), alone.classify(pixels), atol=1e-6)


def test_without_cuda_graphs_it_serves_all_the_same_and_says_so_once(
    digit_files: DigitFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create, asked = runtime.create_session, []

    def on_the_cpu(model: Any, provider: str, cuda_options: Any = runtime.CUDA_OPTIONS, threads: int = 0) -> Any:
        asked.append((provider, cuda_options.get("enable_cuda_graph")))
        if "enable_cuda_graph" in cuda_options:
            raise UserError("3 nodes are on the CPU.")
        return create(model, runtime.CPU, threads=threads)

    monkeypatch.setattr(runtime, "create_session", on_the_cpu)
    metadata = untrusted.check_file(digit_files.normalized)
    with caplog.at_level(logging.WARNING):
        bound = binding.open_for_batches(digit_files.normalized.read_bytes(), runtime.CUDA, metadata, 4)
    assert asked == [(runtime.CUDA, "1"), (runtime.CUDA, None)]
    assert [record.getMessage() for record in caplog.records] == [
        "Serving without CUDA graphs: 3 nodes are on the CPU."
    ]
    assert isinstance(bound, binding.BoundSession)
    x = images(binding.image_shape(metadata), 3, False, 0)
    np.testing.assert_allclose(bound.run(x), create(digit_files.normalized, runtime.CPU).run(x), rtol=0, atol=1e-4)


def test_a_cpu_computes_no_padding(digit_files: DigitFiles) -> None:
    metadata = untrusted.check_file(digit_files.normalized)
    session = binding.open_for_batches(digit_files.normalized, runtime.CPU, metadata, 4, threads=1)
    assert isinstance(session, runtime.OnnxSession)


def test_a_batch_that_computes_otherwise_once_bound_is_refused(
    digit_files: DigitFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = runtime.create_session(digit_files.normalized, runtime.CPU)
    bound = binding.BoundSession(session, binding.image_shape(untrusted.check_file(digit_files.normalized)), [2])
    compute = bound._compute
    monkeypatch.setattr(bound, "_compute", lambda batch: compute(batch) * np.float32(1.1))
    with pytest.raises(UserError, match="Bound batches of 2 give other outputs"):
        bound.prepare()
