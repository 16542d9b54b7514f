"""The run directory: names, locks, and files that are whole after any crash."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from resnet_ops import files, locks, runs
from resnet_ops.config import RunListConfig, TrainConfig
from resnet_ops.errors import RunHeldError, RunLostError, UserError
from resnet_ops.run_records import Best, DataRecord, Epoch, RunRecord, Writer
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


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path) -> None:
    """Else an event with a file's name in it, such as a loss of workers, is lost."""
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    what = "cat\u2028dog\x85mouse\x1e.png cannot be decoded."
    run.log_event(what, "loss")
    assert [(event.what, event.kind) for event in run.events()] == [(what, "loss")]


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


def claim_at_once(folder: Path, name: str | None, overwrite: bool, processes: int) -> list[str]:
    """What each of several processes got that claimed a run at the same time: its name, or "" where it was refused."""
    context = multiprocessing.get_context("fork")
    start, end, names = context.Barrier(processes), context.Event(), context.Queue()

    def claim() -> None:
        start.wait()
        try:
            with runs.claim(folder, name, "auto", overwrite) as run:
                own = run.write(record(status="running", host=str(os.getpid())))
                names.put(run.name)
                end.wait()
                assert run.read_as_written().host == own.host
        except UserError:
            names.put("")

    started = [context.Process(target=claim) for _ in range(processes)]
    for process in started:
        process.start()
    got = [names.get(timeout=30) for _ in started]
    end.set()
    for process in started:
        process.join()
        assert process.exitcode == 0
    return sorted(got)


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_processes_that_create_a_run_at_once_one_has_it(tmp_path: Path, overwrite: bool) -> None:
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        if overwrite:
            (runs.create(folder, "mine", "", overwrite=False).best / "old").touch()
            Run(folder / "mine").write(record())
        assert claim_at_once(folder, "mine", overwrite, 2) == ["", "mine"]
        assert [path.name for path in folder.iterdir()] == ["mine"]
        assert not (folder / "mine" / "best" / "old").exists()


def test_processes_that_name_no_run_get_one_each(tmp_path: Path) -> None:
    for attempt in range(3):
        assert claim_at_once(tmp_path / str(attempt), None, False, 3) == ["auto", "auto-2", "auto-3"]


def test_what_a_killed_process_left_of_a_run_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".resnet-ops-1").mkdir()
    (tmp_path / ".resnet-ops-2" / "best").mkdir(parents=True)
    with runs.claim(tmp_path, "other", "", overwrite=False) as other:
        other.path.rename(tmp_path / ".resnet-ops-3")  # being made by a process that lives
        runs.create(tmp_path, "mine", "", overwrite=False)
        assert {path.name for path in tmp_path.iterdir()} == {".resnet-ops-3", "mine"}
    (tmp_path / "mine" / "weights.safetensors").touch()  # stored before run.json
    runs.create(tmp_path, "mine", "", overwrite=False).write(record())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("fate", ["replaced", "taken over", "renamed"])
def test_a_run_that_is_lost_is_not_written_to(tmp_path: Path, fate: str) -> None:
    with runs.claim(tmp_path, "mine", "", overwrite=False) as run:
        run.write(record())
        run.append_epoch(epoch(1))
        fence = run.fence
        if fate == "taken over":  # as where a server of NFS forgot the lock
            run.lock_file.write_text(locks.Lease.new().model_dump_json())
        else:
            run.path.rename(tmp_path / "old")
        if fate == "replaced":
            with runs.claim(tmp_path, "mine", "", overwrite=False) as other:
                other.write(record(host="another"))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for write in (
            lambda: run.write(record()),
            lambda: run.append_epoch(epoch(2)),
            lambda: run.write_progress({}),
            lambda: files.remove(run.record_file),
            lambda: files.remove_tree(run.path),
            lambda: files.write_folder(run.path / "evaluation", {"a": b""}),
            lambda: files.rename(run.record_file, run.best / "x"),
        ):
            with pytest.raises(RunLostError, match=r"^(Another process|The folder of run mine was removed or renamed)"):
                write()
        run.log_event("not worth stopping for")
        assert run.is_lost()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    if fate == "taken over":
        run.join(fence)  # as a worker that outlived its driver
        with pytest.raises(RunLostError):
            run.append_epoch(epoch(2))
        del files.FENCES[run.path]


def test_waiting_for_a_run_says_who_holds_it(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    code = (
        "import sys, time; from pathlib import Path; from resnet_ops.runs import Run\n"
        "with Run(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(1)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waits: list[str] = []
    with pytest.raises(RunHeldError, match=rf"\(pid {holder.pid} on .*--wait SECONDS"), run.lock():
        pass
    with run.lock(30, waits.append):
        assert holder.wait(10) == 0
    assert waits == [f"Run mine is held by pid {holder.pid} on {socket.gethostname()}; waiting up to 30 s."]
    holder.stdout.close()


def test_listing_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    run.write(record(status="running"))
    with monkeypatch.context() as patch:
        patch.setattr(locks.fcntl, "flock", lambda *_: pytest.fail("a lock was taken"))
        assert runs.summarize(tmp_path).runs[0].status == "interrupted"
    with run.lock():
        assert runs.summarize(tmp_path).runs[0].status == "running"


def test_what_a_newer_version_wrote_is_kept_and_said(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    run.write(record())
    stored = json.loads(run.record_file.read_text())
    stored |= {"mood": "good", "config": stored["config"] | {"momentum_of_time": 3}}
    stored["data"]["smell"] = "none"
    run.record_file.write_text(json.dumps(stored))
    read = run.read_as_written()
    assert read.unknown == ("mood", "momentum_of_time")
    written = json.loads(run.write(read.model_copy(update={"resumed": 1})) and run.record_file.read_text())
    assert written == stored | {"resumed": 1, "updated": written["updated"]}
    stored["config"]["optimizer"] = "a new one"
    stored["versions"] = {"resnet-ops": "99.0"}
    run.record_file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"Version 99\.0 of resnet-ops wrote it"):
        run.read()


def test_what_writes_a_run_is_recorded_and_compared() -> None:
    began = record(host="a", versions={"torch": "2.9", "ray": "2.50"})
    resumed = began.written_by(Writer(since=began.created, host="b", versions={"torch": "2.10", "ray": "2.50"}))
    assert [writer.host for writer in resumed.writers] == ["a", "b"]
    assert resumed.writer.differences(began.writer) == "host b (before: a), torch 2.10 (before: 2.9)"
    assert resumed.writer.differences(resumed.writer) == ""


def test_a_run_that_is_trained_is_as_new_as_its_epochs(tmp_path: Path) -> None:
    def begin(name: str, status: str) -> Run:
        run = runs.create(tmp_path, name, "", overwrite=False)
        run.write(record(name=name, status=status))
        return run

    trained, finished = begin("trained", "running"), begin("finished", "finished")
    for run, age_s in ((trained, 5), (finished, 0)):
        run.append_epoch(epoch(1))
        written = json.loads(run.record_file.read_text())
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1, seconds=age_s)
        run.record_file.write_text(json.dumps(written | {"updated": an_hour_ago.isoformat()}))
        os.utime(run.record_file, (an_hour_ago.timestamp(),) * 2)
    newest, other = runs.list_runs(RunListConfig(runs_dir=tmp_path)).runs
    assert (newest.name, other.name) == ("trained", "finished")
    # A copy of what has ended is no newer than it.
    ages_s = [(datetime.now(UTC) - each.updated).total_seconds() for each in (newest, other)]
    assert (ages_s[0] < 60, ages_s[1] > 3500) == (True, True)


def test_a_torn_last_line_of_the_metrics_is_left_out(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    for number in (1, 2):
        run.append_epoch(epoch(number))
    with run.metrics_file.open("a") as file:
        file.write(epoch(3).model_dump_json()[:40])
    assert [e.epoch for e in run.epochs()] == [1, 2]


def test_a_run_is_found_or_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--runs-dir, or train one: resnet-ops train"):
        runs.find(tmp_path, "mine")
    for name in ("mine", "other"):
        runs.create(tmp_path, name, "", overwrite=False).write(record())
    assert runs.find(tmp_path, "mine").name == "mine"
    with pytest.raises(UserError, match=r"Did you mean mine\? Available: .* Name another folder .*--runs-dir\."):
        runs.find(tmp_path, "nine")


@pytest.mark.parametrize("name", ["a.onnx", "a.ONNX", "a.safetensors", "a.pth", "a.pt", "imagenet"])
def test_a_new_run_is_not_called_as_a_file_is_or_published_weights_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--name {name}: "):
        runs.check_new(tmp_path, name, overwrite=False)
    runs.create(tmp_path, name, "", overwrite=False).write(record())  # as earlier versions did
    assert runs.find(tmp_path, name).read().name == "r"
    runs.check_new(tmp_path, "resnet20-v1.2", overwrite=False)


def test_a_run_has_a_name_by_whichever_path_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(tmp_path, "mine", "", overwrite=False)
    (tmp_path / "link").symlink_to(run.export)
    monkeypatch.chdir(run.export)
    assert {Run(Path(path)).path for path in ("..", "../../mine", "../../link/..")} == {run.path}


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
