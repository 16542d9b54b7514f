"""Runs Ray Tune, and writes down what its trials do as they do it."""

import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.stopper import Stopper

from resnet_ops import files
from resnet_ops.errors import PausedError
from resnet_ops.models import parse_name
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.runs import Best
from resnet_ops.tracking.tracker import Tracker
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.session import TrainingSession
from resnet_ops.tuning import algorithms as parts
from resnet_ops.tuning.algorithms import NUMBER, POINT, number_of
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Selection, Trial, select
from resnet_ops.tuning.space import options
from resnet_ops.tuning.trial import TrialTask, TrialWorker

WHY_STOPPED = {
    "asha": "in the lower half of trials at that epoch",
    "median": "below the median of other trials",
}


class TrialLog:
    """All trials, as far as they are; written to trials.jsonl when one begins or ends.

    `halted` ends the search when it is set.
    """

    def __init__(self, search: Search, record: SearchRecord, observer: SearchObserver, tracker: Tracker) -> None:
        self.search, self.record, self.observer, self.tracker = search, record, observer, tracker
        self.trials = {trial.id: trial for trial in search.trials()}
        self.halted = threading.Event()
        self.paused = ""

    @property
    def settled(self) -> list[Trial]:
        """The trials that are done."""
        return [trial for trial in self.trials.values() if trial.is_settled]

    def answer(self) -> Selection | None:
        """The best trial so far."""
        return select(list(self.trials.values()), self.record.data.val_images)

    def save(self) -> None:
        """Write trials.jsonl."""
        self.search.write_trials(self.trials.values())

    def begun(self, number: int, point: dict[str, Any]) -> None:
        """A trial was given to a worker."""
        if number not in self.trials:
            chosen = options(point)
            model = chosen.get("model", "")
            lr = chosen.get("lr", 0.0)
            self.trials[number] = Trial(
                id=number, options=point, model=model, depth=parse_name(model).depth, lr=float(lr)
            )
            self.save()
        self.observer.trial_changed(self.trials[number])

    def advanced(self, number: int, said: dict[str, Any], point: dict[str, Any]) -> None:
        """A trial has done an epoch, or has failed."""
        trial = self.trials[number]
        if trial.is_settled:  # one of a resumed search, told anew
            return
        update = {
            "epochs": said["epoch"],
            "parameters": said["parameters"],
            "seconds": said["seconds"],
            "options": point,
            "lr": float(point.get("lr", trial.lr)),
        }
        if said["best_epoch"]:
            update |= {"val_accuracy": said["best_val_accuracy"], "best_epoch": said["best_epoch"]}
        if "failed" in said:
            update |= {"status": "failed", "reason": said["failed"]}
            update.pop("val_accuracy", None)
        self.trials[number] = trial.model_copy(update=update)
        if "paused" in said:
            self.paused = said["paused"]
            self.halted.set()
        self.observer.trial_changed(self.trials[number])
        if said["epoch"]:
            self.tracker.look(self.search.trial_run(number))

    def ended(self, number: int, why: str = "") -> None:
        """A trial is over: done, stopped by the scheduler, or failed (`why`)."""
        trial = self.trials[number]
        if not trial.is_settled:
            update: dict[str, Any] = {"status": "finished"}
            if why:
                update = {"status": "failed", "reason": why}
            elif trial.epochs < self.record.epochs:
                reason = WHY_STOPPED.get(self.record.config.scheduler, "by the scheduler")
                update = {
                    "status": "stopped",
                    "reason": f"after epoch {trial.epochs} of {self.record.epochs}: {reason}",
                }
            trial = self.trials[number] = trial.model_copy(update=update)
        elif trial.status != "failed":
            return
        self.save()
        self._settle(trial)
        self.observer.trial_changed(trial)

    def track_settled(self) -> None:
        """Have those trials told that could not be when they ended."""
        for trial in self.settled:
            self.tracker.look(self.search.trial_run(trial), ended=True)

    def _settle(self, trial: Trial) -> None:
        """Say so in the trial's own run, and keep of its weights the best ones only."""
        run = self.search.trial_run(trial)
        if not files.is_file(run.record_file):
            return  # it failed before it began
        record = run.read_as_written()
        update: dict[str, Any] = {
            "status": "failed" if trial.status == "failed" else "finished",
            "reason": trial.reason,
        }
        if trial.best_epoch and trial.val_accuracy is not None:
            best = run.best / "model.safetensors"
            update["best"] = Best(epoch=trial.best_epoch, val_accuracy=trial.val_accuracy, checkpoint=best)
        run.write(record.model_copy(update=update))
        for checkpoint in checkpoints.saved_checkpoints(run):
            files.remove(checkpoint)
        self.tracker.look(run, ended=True)


def run_trials(
    search: Search,
    record: SearchRecord,
    pool: TrialSlots,
    board: TrialLog,
    scratch: Path,
    at_end: Callable[[TrainingSession], None] | None = None,
) -> None:
    """Search to the end, or until the board is halted; `at_end` as in `TrialTask`.

    Raises:
        PausedError: A disk is full.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which speaks on stdout whatever it is told
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # its own CSV, JSON and TensorBoard files
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # of its state, which nobody will read
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of lost workers the follower tells, without tracebacks
    config, space, seed = record.config, record.space, record.config.given.get("seed", 0)
    random.seed(seed)  # PBT takes Python's own
    before = [board.trials[number].options for number in sorted(board.trials)]
    at_once = min(config.max_concurrent or pool.max_concurrent, pool.max_concurrent, record.planned)
    chooser, described, samples = parts.algorithm(config, space, seed, before, at_once)
    task = TrialTask(
        trials=str(search.trials_dir),
        given=config.train_options,
        data=record.data,
        device=pool.device,
        threads=max(pool.cpus, 1),
        nodes=config.nodes_per_trial,
        at_end=at_end,
    )
    resources = pool.resources if config.nodes_per_trial == 1 else tune.PlacementGroupFactory([{"memory": 1}])
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialWorker, task=task), resources),
        param_space=described,
        tune_config=tune.TuneConfig(
            metric=parts.METRIC,
            mode="max",
            search_alg=chooser,
            scheduler=parts.scheduler(config, space, record.epochs),
            num_samples=samples,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            **files.for_arrow(scratch),
            name="tune",
            stop=_Halt(board.halted),
            callbacks=[_Follower(board)],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            # Trials keep their own; Tune would have a copy of each, and fail those that diverged for having none.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
    if board.paused:
        raise PausedError(board.paused)


class _Halt(Stopper):
    """Ends the search when its event is set; a trial ends itself."""

    def __init__(self, halted: threading.Event) -> None:
        self.halted = halted

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles itself for a later session, which there will not be

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.halted.is_set()


class _Follower(Callback):
    """Hears what Tune's trials do."""

    def __init__(self, board: TrialLog) -> None:
        self.board = board

    def __getstate__(self) -> dict[str, Any]:
        return {}  # likewise

    def on_trial_start(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        self.board.begun(*_point(trial))

    def on_trial_result(self, result: dict[str, Any], trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        number, point = _point(trial)
        self.board.advanced(number, result, point)

    def on_trial_complete(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        if not self.board.halted.is_set():
            self.board.ended(_point(trial)[0])

    def on_trial_recover(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        self.board.observer.warn(f"The worker of trial {_point(trial)[0]} was lost: {_why(trial)} Retrying.")

    def on_trial_error(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        number, point = _point(trial)
        self.board.begun(number, point)
        self.board.ended(number, f"its worker was lost: {_why(trial)}")


def _why(trial: Any) -> str:
    lines = [line.strip() for line in str(trial.get_error()).splitlines() if line.strip()]
    return (lines or ["no reason was given."])[-1][:200]


def _point(trial: Any) -> tuple[int, dict[str, Any]]:
    point = dict(trial.config[POINT])
    return number_of(trial.trial_id, point), {name: value for name, value in point.items() if name != NUMBER}
