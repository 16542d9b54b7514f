"""A file that is replaced or written to while it is verified: no result is of another file than the one on the disk."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import checks, graph, job, snapshot, untrusted, validate
from resnet_ops.export.config import ExportConfig, ValidateConfig
from resnet_ops.export.job import export_onnx
from resnet_ops.export.proof import verify_file
from resnet_ops.export.proof_report import ProofReport
from resnet_ops.export.validate import validate_onnx
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles, Ended
from tests.export.samples import copy


@pytest.fixture(autouse=True)
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_BATCH", 4)


@pytest.fixture(scope="module")
def passing(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("passing") / "m.onnx"
    return Path(export_onnx(ExportConfig(run=str(trained.run.path), out=out, images=20)).onnx)


@pytest.fixture
def exported(passing: Path, tmp_path: Path) -> Path:
    """A file of the run, which passes."""
    return Path(shutil.copy(passing, tmp_path))


def negated(file: Path) -> bytes:
    """Return the same file with other weights."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return bytes(model.SerializeToString(deterministic=True))


def replace_by(other: bytes, file: Path) -> None:
    file.with_name("other").write_bytes(other)
    file.with_name("other").replace(file)


def write_into(other: bytes, file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(other)


def make_a_pipe(_: bytes, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def remove(_: bytes, file: Path) -> None:
    file.unlink()


def test_a_file_that_is_swapped_while_it_is_verified_does_not_pass(
    cli: Callable[..., Ended], exported: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the sandbox has ended, when the file has been opened several times."""
    other = negated(exported)

    def swapped(*arguments: object, **options: object) -> ProofReport:
        replace_by(other, exported)
        return verify_file(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(validate, "verify_file", swapped)
    ended = cli("validate", exported, "--checkpoint", trained.run.path, "--images", 20)
    assert ended.code == WORK_FAILED
    assert "m.onnx changed while it was verified" in " ".join(ended.err.split())
    assert "Passed" not in ended.out


@pytest.mark.parametrize("swap", [replace_by, write_into, make_a_pipe, remove])
def test_no_change_of_a_file_goes_unnoticed(
    swap: Callable[[bytes, Path], None], digit_files: DigitFiles, tmp_path: Path
) -> None:
    file = Path(shutil.copy(digit_files.normalized, tmp_path))
    with snapshot.take(file, "cpu") as taken:
        taken.check_unchanged()
        swap(negated(file), file)
        with pytest.raises(UserError, match="changed while it was verified"):
            taken.check_unchanged()


def test_a_file_that_is_swapped_and_put_back_is_never_looked_at_again(
    exported: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = exported.read_bytes()

    def swapped(*arguments: object, **options: object) -> ProofReport:
        replace_by(good, exported)
        report = verify_file(*arguments, **options)  # type: ignore[arg-type]
        replace_by(other, exported)
        return report

    other = negated(exported)
    exported.write_bytes(other)
    monkeypatch.setattr(validate, "verify_file", swapped)
    report = validate_onnx(ValidateConfig(file=exported, checkpoint=str(trained.run.path), images=20))
    assert "weights" in {check.name for check in report.failed_checks}
    assert report.onnx == exported


def test_weights_in_another_file_are_copied_as_well(
    digit_files: DigitFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "ONE_FILE_BYTES", 100_000)
    file, weights = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    graph.write(copy(onnx.load(digit_files.normalized)), file)
    content = weights.read_bytes()
    with snapshot.take(file, "cpu") as taken:
        assert taken.file.parent != tmp_path
        assert stat.S_IMODE(taken.file.parent.stat().st_mode) == 0o700
        assert {path.name: path.read_bytes() for path in taken.file.parent.iterdir()} == {
            path.name: path.read_bytes() for path in (file, weights)
        }
        weights.write_bytes(bytes(len(content)))
        whole = untrusted.with_weights(taken.file, untrusted.scan(taken.file)[0])
        assert any(np.any(numpy_helper.to_array(tensor)) for tensor in whole.graph.initializer)
        with pytest.raises(UserError, match=r"m\.onnx\.data changed while it was verified"):
            taken.check_unchanged()
        weights.write_bytes(content)
        taken.check_unchanged()
    assert not taken.file.exists()
    # What is left after the last tensor nobody would look at.
    weights.write_bytes(content + b"certified")
    with pytest.raises(UserError, match=r"more than its weights in 'm\.onnx\.data'"):
        untrusted.scan(file)


def test_an_export_that_is_swapped_before_it_has_its_name_is_refused(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(file: Path, *arguments: object) -> ProofReport:
        report = verify_file(file, *arguments)  # type: ignore[arg-type]
        replace_by(negated(file), file)
        return report

    monkeypatch.setattr(job, "verify_file", swapped)
    with pytest.raises(UserError, match="changed while it was verified"):
        export_onnx(ExportConfig(run=str(trained.run.path), out=tmp_path / "m.onnx", images=20))
    assert list(tmp_path.iterdir()) == []
