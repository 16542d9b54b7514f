"""The numbers of `bench` add up, and a backend that cannot run is a row with the reason."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from resnet_ops.export import bench, runtime, untrusted
from resnet_ops.export.bench import Measurement
from resnet_ops.export.bench_worker import BenchCandidate, list_candidates
from tests.conftest import DigitFiles, Ended
from tests.export.samples import properties_of

Cli = Callable[..., Ended]


class Dying(BenchCandidate):
    """A candidate that is killed, as one that takes all the memory is."""

    def prepare(self, batch: int) -> Callable[[], object]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def bench_candidates(file: Path, provider: str = runtime.CPU) -> list[BenchCandidate]:
    return list_candidates(file, untrusted.check_file(file), provider, compiled=False)


def test_every_batch_size_has_its_lines_and_they_add_up(cli: Cli, digit_files: DigitFiles) -> None:
    ended = cli("bench", digit_files.normalized, "--batch", "2,16,2", "--seconds", "0.1", "--no-compile", "--json")
    assert ended.code == 0, ended.err
    rows = ended.json["rows"]
    assert [row["batch"] for row in rows] == [2, 2, 16, 16]
    for ours, eager in (rows[:2], rows[2:]):
        assert ours["name"] == "ONNX Runtime"
        assert eager["name"].startswith("torch eager, ")
        assert eager["ratio"] == 1
        assert ours["ratio"] == pytest.approx(ours["images_per_second"] / eager["images_per_second"])
    for row in rows:
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["calls"] >= bench.ROUNDS
        assert row["memory_bytes"] > 0


@pytest.mark.parametrize("given", ["normalized", "raw"])
def test_all_compute_the_same_network(digit_files: DigitFiles, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file's weights in place of random ones, torch's answers are the file's, from the same input on."""

    def with_weights(*args: object, **kwargs: object) -> torch.nn.Module:
        network = digit_files.checkpoint.info.build_network()
        network.load_state_dict(digit_files.checkpoint.model)
        return network

    monkeypatch.setattr("resnet_ops.models.build", with_weights)
    ort, *torchs = bench_candidates(getattr(digit_files, given))
    expected = np.asarray(ort.prepare(5)())
    assert expected.shape == (5, 10)
    assert len(torchs) == 2
    for one in torchs:
        np.testing.assert_allclose(np.asarray(one.prepare(5)()), expected, rtol=1e-3, atol=1e-4)


def test_of_eager_the_faster_format_is_what_others_are_compared_with(digit_files: DigitFiles) -> None:
    ort, nchw, last = bench_candidates(digit_files.normalized)
    tf32 = replace(ort, arithmetic="tf32")
    fast, slow, other = ((s,) for s in ([0.1, 0.1, 0.2], [0.4], [0.05]))
    rows = list(
        bench.compare(
            [
                Measurement(ort, 8, other),
                Measurement(tf32, 8, other),
                Measurement(nchw, 8, slow),
                Measurement(last, 8, fast),
            ]
        )
    )
    assert [(row.name, row.ratio) for row in rows] == [
        ("ONNX Runtime", pytest.approx(2)),
        ("ONNX Runtime", None),  # torch was not measured in this arithmetic
        ("torch eager, channels_last", 1),
    ]


@pytest.mark.parametrize(("calls", "p99"), [([3.0], 3), ([1, 2, 9], 9), (range(1, 101), 99), (range(1, 201), 198)])
def test_p99_is_no_more_than_a_hundredth_of_the_calls_exceed(
    digit_files: DigitFiles, calls: list[float], p99: float
) -> None:
    one = Measurement(bench_candidates(digit_files.normalized)[0], 1, (tuple(calls),))
    assert one.p99_ms == pytest.approx(1e3 * p99)


def test_a_backend_that_cannot_run_is_a_row_with_the_reason(digit_files: DigitFiles) -> None:
    ort, eager, _ = bench_candidates(digit_files.normalized)
    strange = replace(eager, metadata=eager.metadata.model_copy(update={"model": "mystery9"}))
    ours, failed = bench.compare(bench.measure([ort, strange], 1, 0.1))
    assert ours.calls
    assert ours.ratio is None
    assert "mystery9" in failed.error


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        ("resnet56", "layers with weights, resnet56 has 56"),
        ("plain8", "it adds 3 shortcuts, expected 0"),
        ("mystery9", "its metadata name no network"),
    ],
)
def test_a_file_that_is_not_of_the_network_that_it_names_is_refused(
    cli: Cli, digit_files: DigitFiles, tmp_path: Path, model: str, difference: str
) -> None:
    """Its figures would be beside those of another network in torch."""
    claimed = onnx.load(digit_files.raw)
    claims = properties_of(claimed) | {"model": model}
    del claims["shortcut"]
    onnx.helper.set_model_props(claimed, claims)
    (tmp_path / "m.onnx").write_bytes(claimed.SerializeToString(deterministic=True))
    ended = cli("bench", tmp_path / "m.onnx", "--no-compile")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert difference in line
    assert f"resnet-ops validate {tmp_path / 'm.onnx'}" in line


def test_a_killed_backend_does_not_affect_the_others(digit_files: DigitFiles) -> None:
    ort = bench_candidates(digit_files.normalized)[0]
    dying = Dying(**{**vars(ort), "name": "dying"})
    killed, fine = bench.measure([dying, ort], 4, 0.1)
    assert "killed (signal 9)" in killed.error
    assert len(fine.rounds) == bench.ROUNDS


def test_wrong_requests(cli: Cli, digit_files: DigitFiles, tmp_path: Path) -> None:
    for arguments, words in [
        (("--batch", "1,x"), "--batch must be batch sizes"),
        (("--batch", "0"), "--batch must be batch sizes"),
        (("--seconds", "0"), "--seconds"),
    ]:
        ended = cli("bench", digit_files.normalized, *arguments)
        assert ended.code == 2
        assert words in ended.err.splitlines()[-1]
    assert "does not exist" in cli("bench", tmp_path / "no.onnx").err


@pytest.mark.slow
def test_torch_compile_is_measured_too(cli: Cli, digit_files: DigitFiles) -> None:
    ended = cli("bench", digit_files.raw, "--batch", "4", "--seconds", "0.1", "--json")
    (compiled,) = [row for row in ended.json["rows"] if row["name"] == "torch.compile"]
    assert compiled["calls"] or compiled["error"]
