"""Batches of a service, on buffers that stay on the GPU and replayed for each size, give what plain runs give."""

from pathlib import Path

import numpy as np
import pytest

from resnet_ops.export import runtime, untrusted
from resnet_ops.export.binding import BoundSession, open_for_batches
from tests.conftest import DigitFiles
from tests.gpu.hardware import PROVIDER

LARGEST = 16
SIZES = (1, 16, 3, 8, 5, 1, 16, 7, 2, 17, 40, 1)  # some larger than what is bound


def batch(file: Path, size: int, side: int = 8) -> np.ndarray:
    random = np.random.default_rng(size)
    if untrusted.check_file(file).input == "raw":
        return random.integers(0, 256, (size, side, side, 1), np.uint8)
    return random.standard_normal((size, 1, side, side), np.float32)


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("form", ["normalized", "raw"])
def test_bound_batches_give_what_plain_runs_give(form: str, digit_files: DigitFiles) -> None:
    file = getattr(digit_files, form)
    provider, metadata = runtime.resolve_provider(PROVIDER), untrusted.check_file(file)
    session = open_for_batches(file, provider, metadata, LARGEST)
    if PROVIDER == "cpu":  # bound all the same, which a service on a CPU does not do
        session = BoundSession(runtime.create_session(file, provider), batch(file, 1).shape[1:], [1, 4, LARGEST])
        session.prepare()
    assert isinstance(session, BoundSession)
    if form == "normalized":
        assert session.captures == (PROVIDER == "cuda")
    plain = runtime.create_session(file, runtime.CPU)
    kept = [(session.run(x), plain.run(x)) for x in (batch(file, size) for size in SIZES)]
    for ours, theirs in kept:  # compared at the end: what was returned must not be a buffer that is used again
        assert_alike(ours, theirs)


def test_images_of_another_size_than_the_bound_ones_are_run_too(digit_files: DigitFiles) -> None:
    file = digit_files.raw
    session = open_for_batches(file, runtime.resolve_provider(PROVIDER), untrusted.check_file(file), LARGEST)
    plain = runtime.create_session(file, runtime.CPU)
    for side in (8, 13, 8, 21):
        x = batch(file, 5, side)
        assert np.abs(session.run(x) - plain.run(x)).max() < 0.05 * np.abs(plain.run(x)).max()  # a level of a pixel
