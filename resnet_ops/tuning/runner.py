"""Runs the trials of a search in Ray Tune, and reports to the `TrialLog` what they do.

Ray Tune's own results, logs and checkpoints are switched off: a search's directory has all there is to keep.
"""

import contextlib
import logging
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.stopper import Stopper

from resnet_ops import files
from resnet_ops.config_base import as_typed
from resnet_ops.errors import PausedError, UserError
from resnet_ops.orchestration import worker_stop
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.stop_request import Stop, StoppedError, StopRequest
from resnet_ops.training.session import TrainingSession
from resnet_ops.tuning.algorithms import METRIC, NUMBER, POINT, build_scheduler, build_search, trial_number
from resnet_ops.tuning.trial import TrialTask, TrialWorker
from resnet_ops.tuning.trial_log import TrialLog


def run_trials(
    log: TrialLog, slots: TrialSlots, request: StopRequest, at_end: Callable[[TrainingSession], None] | None = None
) -> None:
    """Run the search to its end, or until the log's `stop` is set; `at_end` as in `TrialTask`.

    Raises:
        StoppedError: It was asked to stop, here or on a node; the trials have saved, unless it was asked twice.
        PausedError: A disk is full.
    """
    scratch, trials = log.search.run.path / "ray", str(log.search.trials_dir)

    def ask(stop: Stop) -> None:
        log.stopped_by = stop
        log.stop.set()
        worker_stop.ask_workers(trials, stop)

    try:
        with slots.start_ray(request), ThreadPoolExecutor(1, "tune") as thread:
            request.check()
            worker_stop.withdraw(trials)
            fitting: Future[Any] = thread.submit(lambda: _tuner(log, slots, scratch, at_end).fit())
            try:
                worker_stop.wait_for_workers(fitting, request, ask)
            except KeyboardInterrupt:
                log.stop.set()
                fitting.exception()
                raise
    finally:
        with contextlib.suppress(OSError, UserError):
            files.remove_tree(scratch)
    if log.stopped_by and len(log.ended_trials) < log.record.planned:
        raise StoppedError(log.stopped_by)
    if log.pause_reason:
        raise PausedError(log.pause_reason)


def _tuner(
    log: TrialLog, slots: TrialSlots, scratch: Path, at_end: Callable[[TrainingSession], None] | None
) -> tune.Tuner:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints to stdout at any verbosity
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # its own CSV, JSON and TensorBoard files
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # of its state, which nobody will read
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # lost workers are reported below, without tracebacks
    record = log.record
    config, seed = record.config, record.config.given.get("seed", 0)
    random.seed(seed)  # PBT draws from Python's own generator
    previous_points = [log.trials[number].options for number in sorted(log.trials)]
    max_concurrent = min(config.max_concurrent or slots.max_concurrent, slots.max_concurrent, record.planned)
    algorithm, param_space, num_samples = build_search(config, record.space, seed, previous_points, max_concurrent)
    options = config.train_options
    if files.is_file(weights := log.search.run.weights_file):  # those that every trial begins with
        options |= {"weights": as_typed(weights), "weights_key": None}
    task = TrialTask(
        trials=str(log.search.trials_dir),
        train_options=options,
        data=record.data,
        device=slots.device,
        threads=max(slots.cpus, 1),
        nodes=config.nodes_per_trial,
        shares_gpu=0 < slots.gpus < 1,
        at_end=at_end,
        fence=log.search.run.fence,
    )
    resources = slots.resources if config.nodes_per_trial == 1 else tune.PlacementGroupFactory([{"memory": 1}])
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialWorker, task=task), resources),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=algorithm,
            scheduler=build_scheduler(config, record.space, record.epochs),
            num_samples=num_samples,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            **files.for_arrow(scratch),
            name="tune",
            stop=_StopOnEvent(log.stop),
            callbacks=[_LogCallback(log)],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            # Trials keep their own; Tune would have a copy of each, and fail those that diverged for having none.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


class _StopOnEvent(Stopper):
    """Ends the search when an event is set; trials end themselves."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles itself for a later session, which there will not be

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.event.is_set()


class _LogCallback(Callback):
    """Reports Tune's events to the `TrialLog`."""

    def __init__(self, log: TrialLog) -> None:
        self.log = log

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for _StopOnEvent

    def on_trial_start(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        self.log.start_trial(*_number_and_point(trial))

    def on_trial_result(self, result: dict[str, Any], trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        number, point = _number_and_point(trial)
        self.log.update_trial(number, result, point)

    def on_trial_complete(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        if not self.log.stop.is_set():
            self.log.end_trial(_number_and_point(trial)[0])

    def on_trial_recover(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        number = _number_and_point(trial)[0]
        self.log.observer.warn(f"The worker of trial {number} was lost: {_last_error_line(trial)} Retrying.")

    def on_trial_error(self, trial: Any, **_: Any) -> None:  # type: ignore[override]  # all by name
        number, point = _number_and_point(trial)
        self.log.start_trial(number, point)
        self.log.end_trial(number, f"its worker was lost: {_last_error_line(trial)}")


def _last_error_line(trial: Any) -> str:
    lines = [line.strip() for line in str(trial.get_error()).splitlines() if line.strip()]
    return (lines or ["no reason was given."])[-1][:200]


def _number_and_point(trial: Any) -> tuple[int, dict[str, Any]]:
    point = dict(trial.config[POINT])
    return trial_number(trial.trial_id, point), {name: value for name, value in point.items() if name != NUMBER}
