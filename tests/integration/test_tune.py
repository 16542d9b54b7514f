"""`resnet-ops tune`: real Ray Tune, real workers, a driver that is killed."""

import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from resnet_ops import runs
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.job import export_onnx
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job as training
from resnet_ops.tuning import job
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.results import Search, SearchObserver, Trial
from tests.conftest import COMMAND, Ended, command
from tests.integration.test_cli import refused
from tests.processes import command_line, ours
from tests.tracking.test_tensorboard import curves, read_curves

pytestmark = pytest.mark.usefixtures("ray_session")
EPOCHS = 3


def run_search(runs_dir: Path, name: str, *pairs: str, epochs: int = EPOCHS, **options: Any) -> job.TuneResult:
    given = {"runs_dir": runs_dir, "name": name, "epochs": epochs, "cpus_per_worker": 1} | options.pop("given", {})
    observer = options.pop("observer", None)
    return job.tune(TuneConfig.of(given=given, **options), pairs, observer=observer)


class Warnings(SearchObserver):
    """Collects the warnings of a search."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture(scope="module")
def grid(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> job.TuneResult:
    """Two depths and two learning rates, one of them much too high; logged to an MLflow without a server."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return run_search(
            folder, "grid", depths="8,14", lr="0.1,1e9", search="grid", scheduler="none", given={"track": "mlflow"}
        )


def test_every_combination_is_trained_and_one_that_diverges_stops_nobody(grid: job.TuneResult) -> None:
    assert [t.id for t in grid.trials] == [1, 2, 3, 4]
    assert {(t.model, t.lr): t.status for t in grid.trials} == {
        ("resnet8", 0.1): "finished",
        ("resnet14", 0.1): "finished",
        ("resnet8", 1e9): "failed",
        ("resnet14", 1e9): "failed",
    }
    failed = [t for t in grid.trials if t.status == "failed"]
    assert all("Training diverged in epoch 1" in t.reason for t in failed)
    assert all(t.epochs == EPOCHS for t in grid.trials if t.status == "finished")


def test_a_trial_is_the_same_training_as_a_run(grid: job.TuneResult, tmp_path: Path) -> None:
    trial = next(t for t in grid.trials if t.status == "finished" and t.depth == 8)
    alone = training.train(
        TrainConfig.of(model="resnet8", lr=0.1, epochs=EPOCHS, cpus_per_worker=1, runs_dir=tmp_path, name="alone")
    )
    theirs, ours = alone.run.epochs(), grid.search.trial_run(trial).epochs()
    assert [(e.train_loss, e.val_loss, e.val_error) for e in theirs] == [
        (e.train_loss, e.val_loss, e.val_error) for e in ours
    ]


def test_the_search_becomes_the_run_of_its_best_trial(grid: job.TuneResult) -> None:
    best, run = grid.best_trial, grid.search.run
    record = run.read()
    assert record.status == "finished"
    assert record.best is not None
    assert record.best.val_accuracy == best.val_accuracy
    assert record.config.model == best.model
    of_trial = grid.search.trial_run(best)
    assert (run.best / "model.safetensors").read_bytes() == (of_trial.best / "model.safetensors").read_bytes()
    assert run.epochs() == of_trial.epochs()
    assert Search(run).trials() == list(grid.trials)
    assert not (run.path / "ray").exists()
    assert not checkpoints.saved_checkpoints(of_trial)  # only the best weights of a trial that is done are kept
    exported = export_onnx(ExportConfig.of(run=run.name, runs_dir=run.path.parent, provider="cpu"))
    assert exported.validated
    assert exported.val_accuracy_onnx == pytest.approx(best.val_accuracy)


def test_each_trial_is_a_run_where_it_is_tracked(grid: job.TuneResult) -> None:
    client = MlflowClient(f"sqlite:///{grid.search.run.path.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("resnet-ops")
    assert experiment is not None
    tracked_runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(tracked_runs) == {f"grid/{trial.name}" for trial in grid.trials}
    for trial in grid.trials:
        run = grid.search.trial_run(trial)
        if trial.epochs:
            tracked = tracked_runs[f"grid/{trial.name}"]
            losses = [metric.value for metric in client.get_metric_history(tracked.info.run_id, "loss/val")]
            assert losses == [e.val_loss for e in run.epochs()]
            assert tracked.data.params["model"] == trial.model
            assert read_curves(run.path / "tensorboard") == curves(run.epochs())
        assert tracked_runs[f"grid/{trial.name}"].info.status == (
            "FINISHED" if trial.status == "finished" else "FAILED"
        )


@pytest.mark.slow
def test_the_best_can_be_trained_in_full_on_all_images(tmp_path: Path) -> None:
    result = run_search(tmp_path, "r", depths="8", lr="0.1,1e9", search="grid", epochs=2, refit=True)
    assert result.refit is not None
    refit = Run(result.search.run.path.with_name(result.refit))
    record = refit.read()
    assert (record.name, record.status, record.config.fit_all) == ("r-refit", "finished", True)
    assert (record.config.model, record.config.lr) == (result.best_trial.model, 0.1)
    steps = [epochs[-1].step for epochs in (refit.epochs(), result.search.run.epochs())]
    assert steps == [2 * math.ceil((1438 + 359) / 128), 2 * math.ceil(1438 / 128)]


def test_a_search_is_not_gone_on_with_as_a_run(grid: job.TuneResult) -> None:
    run = grid.search.run
    with pytest.raises(UserError, match=f"{run.name} is a search.*tune --resume {run.name}"):
        training.resume(run.path.parent, run.name)


def test_going_on_with_a_finished_search_trains_nothing(grid: job.TuneResult) -> None:
    run = grid.search.run
    before = {t.id: grid.search.trial_run(t).metrics_file.stat().st_mtime_ns for t in grid.trials if t.epochs}
    again = job.resume(run.path.parent, run.name)
    assert again.trials == grid.trials
    assert again.best_trial == grid.best_trial
    assert before == {t.id: grid.search.trial_run(t).metrics_file.stat().st_mtime_ns for t in grid.trials if t.epochs}


def test_going_on_with_other_images_or_other_code_is_refused(grid: job.TuneResult, tmp_path: Path) -> None:
    search, record = grid.search, grid.search.read()
    data = record.data.model_copy(update={"fingerprint": "0" * 64})
    for changed, message in (
        ({"data": data}, "The images in digits differ from those"),
        ({"code": "0" * 64}, r"other code \(the code of resnet-ops\)"),
        ({"versions": record.versions | {"torch": "1.0"}}, r"other code \(torch was 1.0, now "),
    ):
        try:
            search.write(record.model_copy(update=changed))
            with pytest.raises(UserError, match=message):
                job.resume(search.run.path.parent, search.run.name)
        finally:
            search.write(record)


def test_asha_stops_the_lower_half_after_the_grace_and_says_so(tmp_path: Path) -> None:
    result = run_search(tmp_path, "asha", depths="8", lr="0.1,1e-6,2e-6,3e-6", search="grid", grace=1, epochs=4)
    by_rate = {t.lr: t for t in result.trials}
    assert by_rate[0.1].status == "finished"
    stopped = [t for t in result.trials if t.status == "stopped"]
    assert stopped
    assert all(1 <= t.epochs < 4 for t in stopped)
    assert stopped[0].reason.startswith(f"after epoch {stopped[0].epochs} of 4: in the lower half")
    assert result.best_trial.lr == 0.1
    assert result.best.majority_baseline.beaten


def test_trials_of_different_lengths_are_all_trained_to_their_ends(tmp_path: Path) -> None:
    for name, epochs in (("short", 1), ("long", 3)):
        (tmp_path / f"{name}.toml").write_text(f"epochs = {epochs}\n")
    recipes = f"recipe={tmp_path}/short.toml,{tmp_path}/long.toml"
    given = {"runs_dir": tmp_path, "name": "recipes", "cpus_per_worker": 1}
    result = job.tune(TuneConfig.of(depths="8", lr="0.1", search="grid", grace=3, given=given), [recipes])
    assert {(t.status, t.epochs, t.planned_epochs, t.reason) for t in result.trials} == {
        ("finished", 1, 1, ""), ("finished", 3, 3, ""),
    }  # fmt: skip
    assert result.search.read().epochs == 3
    for trial in result.trials:
        best, _ = checkpoints.read_best(result.search.trial_run(trial))
        assert (best.info.epoch, best.info.validated.val_accuracy) == (trial.best_epoch, trial.val_accuracy)
    assert result.search.compare(result.trials, 359).tests == "exact McNemar test"


def test_optuna_searches_and_learns_its_seed(tmp_path: Path) -> None:
    result = run_search(tmp_path, "tpe", "batch_size=64:128", depths="8,14", search="optuna", trials=3, epochs=1)
    assert [t.status for t in result.trials] == ["finished"] * 3
    assert all(0.01 <= t.lr <= 1 and 64 <= t.options["batch_size"] <= 128 for t in result.trials)
    assert len({t.lr for t in result.trials}) == 3
    again = run_search(tmp_path, "tpe-again", "batch_size=64:128", depths="8,14", search="optuna", trials=2, epochs=1)
    assert [t.options for t in again.trials] == [t.options for t in result.trials[:2]]


@pytest.mark.slow
def test_pbt_hands_weights_and_learning_rates_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"depths": "8", "scheduler": "pbt", "lr": "1e-5:0.2"}
    pairs = ("sampler=shuffle,balanced", "ema=0,0.9")  # values that cannot be multiplied, or not beyond their ends
    result = run_search(tmp_path, "pbt", *pairs, trials=4, epochs=8, grace=4, **options)
    assert {t.options["ema"] for t in result.trials} <= {0, 0.9}
    assert all((t.status, t.epochs) == ("finished", 8) for t in result.trials)
    events = [e.what for t in result.trials for e in result.search.trial_run(t).events()]
    assert any(what.startswith("Continued from the weights of epoch ") for what in events)
    changed = [t for t in result.trials if result.search.trial_run(t).read().config.lr != t.options["lr"]]
    assert not changed  # what is recorded of a trial is what it was trained with
    for trial in result.trials:  # in whichever worker its epochs were
        kept = json.loads((result.search.trial_run(trial).best / "model.json").read_text())
        assert kept["metrics"]["epoch"] == trial.best_epoch


def test_trials_do_what_a_recipe_says_that_tune_has_no_option_for(tmp_path: Path) -> None:
    """They stream their images; and what they are selected by, which it has, counts for the search as well."""
    recipe = tmp_path / "streamed.toml"
    recipe.write_text('stream = "on"\nselect = "macro-f1"\n')
    result = run_search(
        tmp_path, "streamed", depths="8", lr="0.1,0.05", search="grid", epochs=1, given={"recipe": str(recipe)}
    )
    assert [(trial.status, trial.epochs) for trial in result.trials] == [("finished", 1)] * 2
    assert all(result.search.trial_run(trial).read().config.stream == "on" for trial in result.trials)
    assert result.best.selected_by == result.search.read().select == "macro-f1"
    assert result.best.metric == max(t.metric or 0 for t in result.trials)


def test_if_all_trials_fail_the_reasons_are_told_together(tmp_path: Path) -> None:
    warnings = Warnings()
    with pytest.raises(UserError) as failed:
        run_search(tmp_path, "all", depths="8", lr="1e9,2e9", search="grid", epochs=1, observer=warnings)
    assert failed.value.exit_code == 1
    assert failed.value.cause.startswith("All 2 trials failed. 2 times: Training diverged in epoch 1")
    assert runs.find(tmp_path, "all").read().status == "failed"
    # No worker was lost over it, and with it the time to start another.
    assert warnings.messages == ["Augmentation: random crop (padding 1)."]


@pytest.mark.slow
def test_a_killed_driver_loses_only_the_epoch_in_hand(tmp_path: Path) -> None:
    options = ["--depths", "8,14", "--lr", "0.05,0.1", "--search", "grid", "--epochs", "6", "--runs-dir", str(tmp_path)]
    started = subprocess.Popen(
        [*COMMAND, "tune", *options, "--name", "s", "--scheduler", "none"], stderr=subprocess.PIPE, text=True
    )
    search = Search(Run(tmp_path / "s"))

    def done() -> list[Trial]:
        return [t for t in search.trials() if t.has_ended] if search.trials_file.exists() else []

    end = time.monotonic() + 90
    while len(done()) < 2 or not any(0 < len(search.trial_run(n).epochs()) < 6 for n in (3, 4)):
        assert started.poll() is None, started.stderr and started.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    started.kill()
    started.wait()
    before = {t.id: search.trial_run(t).metrics_file.read_bytes() for t in done()}
    at_hand = {n: search.trial_run(n).epochs() for n in (3, 4)}
    assert search.run.read().status == "interrupted"

    ended = command("tune", "--resume", "s", "--runs-dir", tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert [(t["id"], t["status"], t["epochs"]) for t in result["trials"]] == [(n, "finished", 6) for n in (1, 2, 3, 4)]
    for number, content in before.items():
        assert search.trial_run(number).metrics_file.read_bytes() == content
    for number, epochs in at_hand.items():
        now = search.trial_run(number).epochs()
        assert now[: max(len(epochs) - 1, 0)] == epochs[: max(len(epochs) - 1, 0)]
    alone = training.train(
        TrainConfig.of(model="resnet14", lr=0.1, epochs=6, cpus_per_worker=1, runs_dir=tmp_path, name="alone")
    )
    last = next(t["id"] for t in result["trials"] if (t["model"], t["lr"]) == ("resnet14", 0.1))
    assert [e.val_loss for e in search.trial_run(last).epochs()] == [e.val_loss for e in alone.run.epochs()]


@pytest.mark.slow
def test_a_killed_worker_loses_only_the_epoch_in_hand(tmp_path: Path) -> None:
    search = Search(Run(tmp_path / "k"))
    killed: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not 2 <= len(search.trial_run(1).epochs()) < 20:
            time.sleep(0.02)
        killed.append(ours(b"ray::ResourceTrainable")[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    warnings = Warnings()
    options = {"lr": "0.05,0.1", "search": "grid", "scheduler": "none"}
    result = run_search(tmp_path, "k", depths="8", epochs=20, observer=warnings, **options)
    killer.join()
    assert killed
    assert len(warnings.messages) == 1
    assert re.match(r"The worker of trial [12] was lost: .*Retrying\.", warnings.messages[0])
    assert [(t.status, t.epochs) for t in result.trials] == [("finished", 20)] * 2
    for trial in result.trials:
        assert [e.epoch for e in search.trial_run(trial).epochs()] == list(range(1, 21))
    alone = training.train(
        TrainConfig.of(model="resnet8", lr=0.05, epochs=20, cpus_per_worker=1, runs_dir=tmp_path, name="alone")
    )
    assert [e.val_loss for e in search.trial_run(1).epochs()] == [e.val_loss for e in alone.run.epochs()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code", "status", "said"),
    [(signal.SIGINT, 130, "interrupted", "stopped"), (signal.SIGTERM, 75, "preempted", "was preempted (SIGTERM)")],
)
def test_signals_stop_its_trials_within_their_epochs(
    tmp_path: Path, stop: signal.Signals, code: int, status: str, said: str
) -> None:
    started = subprocess.Popen(
        [*COMMAND, "tune", "--depths", "8", "--epochs", "500", "--runs-dir", str(tmp_path), "--name", "s", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    search = Search(Run(tmp_path / "s"))
    end = time.monotonic() + 90
    while not search.trial_run(1).epochs():
        assert started.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(started.pid, stop)  # as a terminal, or `timeout`
    out, err = started.communicate(timeout=60)
    assert started.returncode == code, err
    assert any(checkpoints.read(path).info.step for path in checkpoints.saved_checkpoints(search.trial_run(1)))
    assert json.loads(out)["remedy"] == f"Resume with: resnet-ops tune --resume s --runs-dir {tmp_path}"
    assert err.splitlines()[-1].startswith(f"{status}: Search {said}. 0 of 12 trials are done.")
    assert search.run.read().status == status
    assert not [p for p in Path("/proc").glob("[0-9]*") if f"{tmp_path}".encode() in command_line(int(p.name))]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--depths", "8,21"), ("--depths: resnet21 is not a valid depth", "nearby: resnet18, resnet20, resnet26")),
        (("--lr", "1:0.1"), ("--lr: the range 1:0.1 is inverted",)),
        (("--cpus-per-trial", "64"), ("A trial needs 64 CPU cores on one node; this machine has none",)),
        (("--gpus-per-trial", "0.5", "--device", "cpu"), ("--gpus-per-trial 0.5: this machine has no usable GPU",)),
        (("--nodes-per-trial", "2", "--cluster", "local"), ("--nodes-per-trial 2 needs 2 nodes",)),
        (("--resume", "nothing"), ("There is no run called 'nothing'",)),
        (("--resume", "nothing", "--trials", "3"), ("--trials cannot be changed",)),
        (("--trials", "0"), ("--trials",)),
        (("--name", "best.pth"), ("--name best.pth: that is the name of a file", "Use --name best.")),
        (("--depths", "8", "lr=0.1"), ("Nothing to search",)),
        (("--depths", "8,18"), ("resnet18", "32")),
        (("--scheduler", "pbt"), ("all must be the same network: depth cannot be searched",)),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    cli: Callable[..., Ended], tmp_path: Path, arguments: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    refused(cli("tune", *arguments, "--runs-dir", tmp_path / "runs"), *messages)
    assert not (tmp_path / "runs" / "tune-digits").exists()


def test_a_warm_up_fits_into_every_trial(cli: Callable[..., Ended], tmp_path: Path) -> None:
    recipe = tmp_path / "warm.toml"
    recipe.write_text('schedule = "cosine"\nwarmup_steps = 40\n')
    options = ("--recipe", recipe, "batch_size=64,1438", "--runs-dir", tmp_path / "runs")
    refused(cli("tune", *options), "--warmup-steps 40: the whole training is 30 steps (30 epochs of 1)")


@pytest.mark.slow
def test_trials_begin_with_the_same_weights(trained: training.TrainResult, tmp_path: Path) -> None:
    """They are read once, kept with the search, and needed no more: not by trials, nor by the training that follows."""
    file = tmp_path / "mine.safetensors"
    file.write_bytes((trained.run.best / "model.safetensors").read_bytes())
    given = {"weights": str(file), "expect": 50}  # which nothing is left to measure on afterwards
    pairs = ("model=resnet8", "lr=0.0001,0.001")
    result = run_search(tmp_path, "tuned", *pairs, epochs=1, search="grid", refit=True, given=given)
    runs_of_it = [result.search.trial_run(trial) for trial in result.trials]
    file.unlink()
    assert len(runs_of_it) == 2
    for run in (*runs_of_it, result.search.run, Run(tmp_path / "tuned-refit")):
        record = run.read()
        assert record.start is not None
        assert (record.start.origin, record.start.head) == (str(file), "kept")
        assert run.epochs()[0].train_error < 0.1  # from scratch it is 0.5
    kept = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("weights.safetensors")]
    assert sorted(kept) == ["tuned-refit/weights.safetensors", "tuned/weights.safetensors"]
    with pytest.raises(UserError, match="--weights are those of one network, and this search has 2"):
        run_search(tmp_path, "two", "model=resnet8,resnet14", given={"weights": "trained", "runs_dir": tmp_path})
