"""What lies in the folder of exports is of one export, however it ended and whichever ran beside it."""

import hashlib
import json
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from resnet_ops.errors import UserError
from resnet_ops.export import graph, job
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import ResolvedCheckpoint, resolve_run
from resnet_ops.export.proof_report import ProofCheck, ProofReport
from resnet_ops.runs import Run
from resnet_ops.training.checkpoint import Checkpoint, best_file, read, save
from resnet_ops.training.job import TrainResult
from tests.export.samples import copy

PASSED = ProofReport(provider="CPUExecutionProvider", checks=[ProofCheck(name="x", result="", limit="", passed=True)])


def of_no_run(checkpoint: Checkpoint) -> ResolvedCheckpoint:
    return ResolvedCheckpoint(checkpoint, lambda: checkpoint, checkpoint.path.parent)


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path) -> Run:
    """A copy of the trained run."""
    return Run(shutil.copytree(trained.run.path, tmp_path / "runs" / "r", symlinks=True))


def test_a_run_that_was_replaced_meanwhile_gets_no_file_of_the_one_before(run: Run, tmp_path: Path) -> None:
    unverified, final = tmp_path / "model.onnx", run.export / "model.onnx"
    unverified.write_bytes(b"of the old one")
    resolved = resolve_run(str(run.path), tmp_path, print)
    begun_later = run.read().model_copy(update={"created": datetime.now(UTC)})
    run.path.rename(tmp_path / "old")
    with pytest.raises(UserError, match="There is no run in"):
        job._publish(unverified, final, PASSED, resolved, ExportConfig.of(run="r"))
    run.export.mkdir(parents=True)
    run.write(begun_later)
    with pytest.raises(UserError, match="Run r was replaced by another one while it was exported"):
        job._publish(unverified, final, PASSED, resolved, ExportConfig.of(run="r"))
    assert list(run.export.iterdir()) == []


def test_weights_that_training_replaces_meanwhile_are_not_compared_with(run: Run) -> None:
    best = read(best_file(run))
    halved = {f"model/{name}": value / 2 for name, value in best.model.items()}
    with run.lock(), pytest.raises(UserError, match="has other weights than when the export began") as raised:
        job.export_onnx(ExportConfig(run=str(run.path)), on_step=lambda _: save(best_file(run), best.info, halved))
    assert raised.value.remedy == "Export again, or once the training has ended."
    assert list(run.export.iterdir()) == []


def test_an_interruption_leaves_no_file_with_the_weights_of_another(
    checkpoint: Checkpoint, model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "ONE_FILE_BYTES", 100_000)
    final, config, resolved = tmp_path / "model.onnx", ExportConfig.of(run="r"), of_no_run(checkpoint)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    for number, each in enumerate((copy(model), other)):  # writing moves weights elsewhere
        (tmp_path / str(number)).mkdir()
        graph.write(each, tmp_path / str(number) / final.name)
    job._publish(tmp_path / "0" / final.name, final, PASSED, resolved, config)
    assert final.with_name("model.onnx.data").is_file()
    written = job.write_atomically

    def interrupted(path: Path, content: bytes) -> None:
        if path == final:
            raise KeyboardInterrupt
        written(path, content)

    monkeypatch.setattr(job, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job._publish(tmp_path / "1" / final.name, final, PASSED, resolved, config)
    assert not final.exists()


def test_exports_into_one_folder_at_once_do_not_mix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    final, failed = tmp_path / "model.onnx", list[BaseException]()
    started = threading.Barrier(4)

    def publish(byte: bytes) -> None:
        unverified = tmp_path / byte.hex() / final.name
        unverified.parent.mkdir()
        unverified.write_bytes(byte * 3_000_000)
        started.wait()
        try:
            job._publish(unverified, final, PASSED, of_no_run(checkpoint), ExportConfig.of(run="r"))
        except BaseException as error:  # of a thread it would be lost
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(byte,)) for byte in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content, record = final.read_bytes(), json.loads(final.with_name("model.onnx.json").read_bytes())
    assert not failed
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert content == content[:1] * 3_000_000
