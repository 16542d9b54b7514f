"""`resnet-ops train` as users run it: real processes, real Ray, real signals."""

import json
import os
import re
import resource
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from resnet_ops.config import TrainConfig
from resnet_ops.data import opening
from resnet_ops.errors import WORK_FAILED, PausedError
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job
from tests.conftest import CIFAR10, COMMAND, Ended, command, needs_cifar10
from tests.ports import listening
from tests.waiting import wait_for

SMALL = ("--model", "resnet8", "--epochs", "4")


def weights(run: Run, epoch: int) -> dict[str, torch.Tensor]:
    read = checkpoints.read(run.checkpoints / f"epoch-{epoch:04d}.safetensors")
    others = {"optimizer": read.optimizer, "trained": read.trained}
    return read.model | {f"{part}/{name}": value for part, found in others.items() for name, value in found.items()}


def files_of_weights(run: Run) -> dict[str, bytes]:
    """All that checkpoints/ and best/ hold, by name."""
    return {path.name: path.read_bytes() for folder in (run.checkpoints, run.best) for path in folder.iterdir()}


def assert_same_bytes(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name


def test_the_default_run_reaches_98_percent(tmp_path: Path) -> None:
    default_run = job.train(TrainConfig.of(runs_dir=tmp_path, name="default"))
    record = default_run.record
    assert record.status == "finished"
    assert record.best is not None
    assert record.best.val_accuracy >= 0.98
    epochs = default_run.run.epochs()
    assert [e.epoch for e in epochs] == list(range(1, 31))
    assert record.best.val_accuracy == max(e.val_accuracy for e in epochs)
    best, refused = checkpoints.read_best(default_run.run)
    assert not refused
    assert best.info.metrics in [epoch.timed_as(None) for epoch in epochs]
    assert best.info.class_names == tuple("0123456789")


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    one = job.train(TrainConfig.of(model="resnet8", epochs=2, runs_dir=tmp_path, name="one")).run
    ended = command("train", "--model", "resnet8", "--epochs", 2, "--runs-dir", tmp_path, "--name", "two", "--json")
    assert ended.returncode == 0, ended.stderr
    assert_same_bytes(weights(one, 2), weights(Run(tmp_path / "two"), 2))
    other = job.train(TrainConfig.of(model="resnet8", epochs=2, seed=1, runs_dir=tmp_path, name="other")).run
    assert weights(one, 2)["fc.weight"].ne(weights(other, 2)["fc.weight"]).any()


def test_a_worker_in_this_process_takes_the_images_that_were_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, fingerprint = [], opening.fingerprint  # reads all of the files
    monkeypatch.setattr(opening, "fingerprint", lambda *of, **how: opened.append(of) or fingerprint(*of, **how))
    job.train(TrainConfig.of(model="resnet8", epochs=1, runs_dir=tmp_path))
    assert len(opened) == 1


def test_json_is_the_last_line_and_all_of_stdout(tmp_path: Path) -> None:
    ended = command("train", *SMALL, "--runs-dir", tmp_path, "--name", "j", "--json")
    assert ended.returncode == 0
    (line,) = ended.stdout.splitlines()
    result = json.loads(line)
    assert {
        "name", "run_dir", "status", "model", "data", "epochs", "world_size", "best", "images_per_second",
        "time_to_first_step_s", "time_after_last_step_s", "total_s",
    } <= set(result)  # fmt: skip
    assert (result["status"], result["model"], result["epochs"], result["world_size"]) == ("finished", "resnet8", 4, 1)
    assert set(result["best"]) == {
        "epoch", "val_accuracy", "last_val_accuracy", "selected_on", "selected_by", "test_accuracy", "checkpoint",
        "val_loss", "val_top5_accuracy", "val_macro_recall", "val_macro_f1",
    }  # fmt: skip
    assert Path(result["best"]["checkpoint"]).is_file()
    assert 0 < result["time_to_first_step_s"] < result["total_s"]
    assert "Traceback" not in ended.stderr
    assert "INFO" not in ended.stderr  # Ray's commentary
    assert len(re.findall(r"^ *\d/4  ", ended.stderr, re.MULTILINE)) == 4  # a row an epoch, without a terminal too


def test_resuming_a_killed_run_ends_in_the_same_bytes(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    options = ("train", "--model", "resnet8", "--epochs", 12, "--checkpoint-every", 2, "--runs-dir", tmp_path)
    assert cli(*options, "--name", "whole", "--json").code == 0
    killed = Run(tmp_path / "killed")
    resume = ("train", "--resume", "killed", "--runs-dir", tmp_path)
    for begin, is_due in (
        ((*options, "--name", "killed"), lambda: len(killed.epochs()) >= 2),
        (resume, lambda: len(killed.epochs()) >= 4 and [*killed.checkpoints.glob("*-step-*")]),  # within an epoch
    ):
        process = subprocess.Popen([*COMMAND, *map(str, begin)], stderr=subprocess.DEVNULL)
        wait_for(is_due)
        process.kill()
        process.wait()
        assert len(killed.epochs()) < 12
        assert killed.read().status == "interrupted"
    ended = cli("train", "--resume", "killed", "--runs-dir", tmp_path, "--json")
    assert ended.code == 0, ended.err
    assert "Resuming after" in ended.err
    assert ended.json["epochs"] == 12
    whole = Run(tmp_path / "whole")
    assert files_of_weights(killed) == files_of_weights(whole)
    assert [e.val_loss for e in killed.epochs()] == [e.val_loss for e in whole.epochs()]
    assert all(e.seconds > 0 for e in killed.epochs())
    assert len(killed.read().writers) == 3
    assert killed.read().best == whole.read().best.model_copy(  # type: ignore[union-attr]
        update={"checkpoint": killed.best / "model.safetensors"}
    )

    again = cli("train", "--resume", "killed", "--runs-dir", tmp_path, "--json")
    assert (again.code, again.json["status"], again.json["epochs"]) == (0, "finished", 12)
    assert "is finished" in again.err


def test_a_corrupt_last_checkpoint_costs_one_epoch(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    options = {"ema": 0.95, "mixup": 0.2, "cutout": 2, "accumulate": 2, "random_resized_crop": True}
    job.train(TrainConfig.of(model="resnet8", epochs=3, runs_dir=tmp_path, name="c", **options))
    run = Run(tmp_path / "c")
    expected = weights(run, 3)
    best, _ = checkpoints.read_best(run)
    assert best.info.metrics is not None
    assert validation_error(best) == pytest.approx(best.info.metrics.val_error)  # the average, and not `trained/`
    assert expected["fc.weight"].ne(expected["trained/fc.weight"]).any()
    run.write(run.read().model_copy(update={"status": "interrupted"}))
    last = run.checkpoints / "epoch-0003.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    ended = cli("train", "--resume", "c", "--runs-dir", tmp_path)
    assert ended.code == 0, ended.err
    assert "Skipping a checkpoint" in ended.err
    assert_same_bytes(weights(run, 3), expected)


@pytest.mark.slow
@needs_cifar10
def test_a_second_real_data_set_trains_through_the_same_door(tmp_path: Path) -> None:
    result = job.train(
        TrainConfig.of(
            model="resnet8", data=str(CIFAR10 / "test-00000-of-00001.parquet"), epochs=2, lr=0.3, runs_dir=tmp_path
        )
    )
    assert result.record.config.crop_padding == 4
    assert result.record.config.flip is True
    last = result.run.epochs()[-1]
    assert last.val_error < 0.75  # chance is 0.9


# Several workers


def test_two_workers_train_together(ray_session: None, tmp_path: Path) -> None:
    config = TrainConfig.of(
        model="resnet8", epochs=3, batch_size=127, workers_per_node=2, runs_dir=tmp_path, name="two"
    )
    token, seen, trained = os.environ["RAY_AUTH_TOKEN_PATH"], set[bool](), threading.Event()

    def watch_ports() -> None:
        while not trained.wait(0.1):
            addresses = listening(token, of="RayTrainWorker")
            seen.update(address.is_loopback for address in addresses)

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch_ports)
        try:
            result = job.train(config)
        finally:
            trained.set()
        watching.result()
    assert seen == {True}  # the store of the group and gloo's sockets as well
    assert result.record.world_size == 2
    assert result.time_to_first_step_s is not None
    epochs = result.run.epochs()
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert not (result.run.path / "ray").exists()  # Ray's own files are gone
    # Uneven shares: 127 images a step, 359 validation images on two workers. The metrics that both
    # reduced are those of the saved network on all images.
    best, _ = checkpoints.read_best(result.run)
    errors = round(best.info.metrics.val_error * 359, 6)
    assert errors == int(errors)
    assert validation_error(best) == pytest.approx(best.info.metrics.val_error, abs=1 / 359)


@pytest.mark.slow
def test_two_workers_end_in_the_same_bytes_again(ray_session: None, tmp_path: Path) -> None:
    one, again = (
        job.train(TrainConfig.of(model="resnet8", epochs=3, workers_per_node=2, runs_dir=tmp_path, name=name)).run
        for name in ("one", "again")
    )
    assert_same_bytes(weights(one, 3), weights(again, 3))


def validation_error(checkpoint: checkpoints.Checkpoint) -> float:
    from resnet_ops.data.augment import normalize
    from resnet_ops.data.opening import open_source

    images = open_source("digits").load("val")
    network = checkpoint.info.build_network()
    network.load_state_dict(checkpoint.model)
    with torch.inference_mode():
        logits = network.eval()(normalize(torch.from_numpy(images.pixels), checkpoint.info.mean, checkpoint.info.std))
    return float((logits.argmax(1).numpy() != images.labels).mean())


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_user_as_one_line(ray_session: None, tmp_path: Path) -> None:
    from resnet_ops.errors import UserError

    config = TrainConfig.of(
        model="resnet8", epochs=3, lr=1e6, workers_per_node=2, runs_dir=tmp_path, name="nan", batch_size=512
    )
    with pytest.raises(UserError, match=r"diverged in epoch \d.*Try a smaller --lr") as error:
        job.train(config)
    assert error.value.exit_code == 1
    assert Run(tmp_path / "nan").read().status == "failed"


# Interruptions


@pytest.fixture
def mark() -> Iterator[dict[str, str]]:
    """An environment that every process started under it carries; none may outlive the test."""
    marked = {"RESNET_OPS_TEST": uuid.uuid4().hex}
    yield {**os.environ, **marked}
    wait_for(lambda: not carriers(marked["RESNET_OPS_TEST"]), 15)


def carriers(word: str) -> list[str]:
    """Command lines of the living processes whose environment holds `word`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue
    return found


@pytest.mark.slow
def test_ctrl_c_with_several_workers_leaves_no_process_behind(tmp_path: Path, mark: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "train", "--model", "resnet8", "--epochs", "500", "--workers-per-node", "2", "--name", "s"],
        cwd=tmp_path, env=mark, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run = Run(tmp_path / "runs" / "s")
    wait_for(lambda: "step" in (run.read_progress()[0] or {}))
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group hears it
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].endswith("Resume with: resnet-ops train --resume s")
    assert "Traceback" not in err
    assert run.read().status == "interrupted"
    saved = checkpoints.saved_checkpoints(run)[0]  # also in the first epoch
    assert f"Last intact checkpoint: {saved}." in err
    checkpoints.read(saved)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_worker_behind(tmp_path: Path) -> None:
    """Two of Ray's own agents wait another minute or two for the head that is gone; they hold nothing."""
    word = uuid.uuid4().hex
    mark = {**os.environ, "RESNET_OPS_TEST": word}
    process = subprocess.Popen(
        [*COMMAND, "train", "--model", "resnet8", "--epochs", "500", "--workers-per-node", "2", "--name", "k"],
        cwd=tmp_path, env=mark, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    run = Run(tmp_path / "runs" / "k")
    wait_for(lambda: len(run.epochs()) >= 1)
    process.kill()
    process.wait()
    assert run.read().status == "interrupted"
    wait_for(lambda: not [line for line in carriers(word) if "Worker" in line or "raylet" in line], 15)


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path) -> None:
    space = tmp_path / "small"
    space.mkdir()
    mount = f"mount -t tmpfs -o size=4m tmpfs {space}"
    unshare = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs a small file system: neither root nor user namespaces can mount one here")
    train = f"{COMMAND[0]} train --name f --num-to-keep 1 --runs-dir {space} --json"
    after = f"{COMMAND[0]} runs --runs-dir {space} --json; ls -A {space}/f/checkpoints {space}/f"
    ended = subprocess.run(
        [*unshare, "sh", "-c", f"{mount}; {train}; echo code $?; {after}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    error, code, listed, *files = ended.stdout.splitlines()
    assert code == "code 1"
    told = json.loads(error)
    assert "The disk is full: epoch-0002.safetensors (2.1 MiB)" in told["error"]
    assert "Last intact checkpoint:" in told["error"]
    assert told["remedy"].endswith(f"Then resume with: resnet-ops train --resume f --runs-dir {space}")
    assert "Traceback" not in ended.stderr
    (run,) = json.loads(listed)["runs"]
    assert (run["status"], run["epochs_done"]) == ("failed", 2)  # the second one was trained, and not saved
    assert "epoch-0001.safetensors" in files
    assert not [name for name in files if name.endswith(".tmp")]


@pytest.mark.parametrize("tracked", [True, False])
def test_training_that_the_disk_stops_is_paused(tracked: bool, tmp_path: Path) -> None:
    """So that a trial of a search, which trains like this, can tell it from one that failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # too little for a checkpoint
    try:
        with pytest.raises(PausedError, match="No checkpoint has been saved yet") as stopped:
            job.train(TrainConfig.of(model="resnet8", epochs=1, runs_dir=tmp_path, name="x"), tracked=tracked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stopped.value.exit_code == WORK_FAILED
    assert ("resume with: resnet-ops train --resume x" in stopped.value.remedy) == tracked
