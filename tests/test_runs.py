"""The run directory: names, locks, and files that are whole after any crash."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resnet_ops import runs
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.run_records import Best, DataRecord, Epoch, RunRecord
from resnet_ops.runs import Run


def record(**update: object) -> RunRecord:
    data = DataRecord(
        name="x", fingerprint="0", class_names=("a", "b"), train_images=1, val_images=1, channels=1, height=8, width=8
    )
    now = datetime.now(UTC)
    base = RunRecord(
        name="r", status="running", created=now, updated=now, config=TrainConfig(), data=data, parameters=1,
        world_size=1, device="cpu", host="h", versions={},
    )  # fmt: skip
    return base.model_copy(update=update)


def epoch(number: int) -> Epoch:
    return Epoch(
        epoch=number, step=number, train_loss=1, train_error=0.5, val_loss=1, val_error=0.25, lr=0.1,
        images_per_second=1, seconds=1,
    )  # fmt: skip


def test_names_count_up_until_one_is_free(tmp_path: Path) -> None:
    names = [runs.create(tmp_path, None, "resnet20-digits", overwrite=False).name for _ in range(3)]
    assert names == ["resnet20-digits", "resnet20-digits-2", "resnet20-digits-3"]


def test_a_taken_name_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    run.write(record())
    with pytest.raises(UserError, match=r"Run mine exists already.*--resume mine.*--overwrite"):
        runs.create(tmp_path, "mine", "", overwrite=False)
    assert run.read().name == "r"


def test_a_name_whose_process_was_killed_before_it_began_is_free(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    assert runs.create(tmp_path, "mine", "", overwrite=False).path == run.path
    (run.checkpoints / "epoch-0001.safetensors").touch()
    with pytest.raises(UserError, match="Run mine exists already"):
        runs.create(tmp_path, "mine", "", overwrite=False)
    assert (run.checkpoints / "epoch-0001.safetensors").exists()


def test_overwriting_removes_runs_only(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    run.write(record())
    (run.best / "old").touch()
    assert not (runs.create(tmp_path, "mine", "", overwrite=True).best / "old").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a run"):
        runs.create(tmp_path, "precious", "", overwrite=True)
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_a_run_that_is_being_trained_is_not_overwritten(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    run.write(record())
    with run.lock(), pytest.raises(UserError, match="being trained by another process"):
        runs.create(tmp_path, "mine", "", overwrite=True)
    assert run.read().name == "r"


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "file" else Path("/proc/runs")
    with pytest.raises(UserError, match=r"cannot be written to .*--runs-dir"):
        runs.create(folder, "mine", "", overwrite=False)


def test_a_killed_process_leaves_a_run_that_reads_as_interrupted(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    run.write(record(status="running"))
    code = (
        "import sys, time; from pathlib import Path; from resnet_ops.runs import Run\n"
        "with Run(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert run.read().status == "running"
    with pytest.raises(UserError, match="another process"), run.lock():
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert run.read().status == "interrupted"
    with run.lock():
        assert run.is_locked()


def test_a_torn_last_line_of_the_metrics_is_left_out(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    for number in (1, 2):
        run.append_epoch(epoch(number))
    with run.metrics_file.open("a") as file:
        file.write(epoch(3).model_dump_json()[:40])
    assert [e.epoch for e in run.epochs()] == [1, 2]


def test_a_run_is_found_or_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Train one: resnet-ops train"):
        runs.find(tmp_path, "mine")
    for name in ("mine", "other"):
        runs.create(tmp_path, name, "", overwrite=False).write(record())
    assert runs.find(tmp_path, "mine").name == "mine"
    with pytest.raises(UserError, match="Did you mean mine"):
        runs.find(tmp_path, "nine")


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    for content in (b"", b"{}", b"\xff\xfe"):
        run.record_file.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            run.read()


def test_run_directory_is_the_configured_one() -> None:
    assert Run(Path("runs/x")).path == Path.cwd() / "runs/x"


def test_losses_are_told_apart_from_notes_and_lines_of_old_have_no_kind(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.events_file.write_text('{"at": "2026-01-01T00:00:00Z", "what": "Lost: worker 1 (killed)."}\n')
    run.log_event("Left out: b does not see /runs/x")
    run.log_event("Lost: worker 2 (killed).", "loss")
    assert [event.kind for event in run.events()] == ["note", "note", "loss"]


def test_accuracies_on_images_that_earlier_versions_had_trained_on_are_not_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "all")
    run.path.mkdir()
    best = Best(epoch=1, val_accuracy=0.75, last_val_accuracy=0.5, checkpoint=run.best / "model.safetensors")
    run.write(record(status="finished", config=TrainConfig(fit_all=True), best=best))
    for number in (1, 2):
        run.append_epoch(epoch(number))
    (summary,) = runs.summarize(tmp_path).runs
    assert (summary.best_val_accuracy, summary.last_val_accuracy, summary.best_epoch) == (None, None, 1)
    written = run.read().best
    assert written
    assert (written.val_accuracy, written.last_val_accuracy, written.selected_on) == (None, None, None)
