"""Runs a whole search: what the command line's `tune` and `study` call. The trials are run in `runner`.

Ray Tune's own state is deleted when a search ends. When it is resumed, the epochs of its trials are reported to Tune
again, from their directories, and it continues where they stopped.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from resnet_ops import files, runs
from resnet_ops.class_metrics import MajorityBaseline
from resnet_ops.cluster_config import JobConfig
from resnet_ops.config import Select, TrainConfig
from resnet_ops.config_base import as_typed
from resnet_ops.data.discovery import absolute_paths, find_missing
from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.machine import versions
from resnet_ops.orchestration.packaging import code_fingerprint
from resnet_ops.orchestration.trial_slots import TrialResources, TrialSlots, allocate_trials
from resnet_ops.recipes.reading import configure
from resnet_ops.results import Result
from resnet_ops.runs import Run
from resnet_ops.stop_request import Stop, StopRequest, stop_of
from resnet_ops.tracking.tracker import Tracker, check_service
from resnet_ops.training import job as training
from resnet_ops.training.defaults import majority_baseline
from resnet_ops.training.observer import Observer
from resnet_ops.training.start import store_weights
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.preflight import (
    check_search,
    longest_training,
    planned_trials,
    refuse_other_code,
    with_shared_gpus,
)
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Trial, find_search
from resnet_ops.tuning.space import Space, read_space

if TYPE_CHECKING:
    from resnet_ops.tuning.trial_log import TrialLog


@dataclass(frozen=True)
class SearchKind:
    """A kind of search: a plain one, or a study.

    Args:
        command: The command that starts and resumes it.
        at_end: Called by workers with each trial's session when it is trained; a function that they can import.
        machines: Of a cluster, to run trials on; by default all.
    """

    command: str = "tune"
    at_end: Callable[[Any], None] | None = None
    machines: int | None = None


TUNE = SearchKind()


class BestTrial(Result):
    """The trial that a search selected."""

    trial: int = Field(description="Its number, from 1.")
    model: str = Field(description="Network, such as resnet20.")
    lr: float = Field(description="Peak learning rate.")
    val_accuracy: float | None = Field(
        description="Top-1 accuracy of its best epoch, from 0 to 1, on the validation images that it was selected on."
    )
    last_val_accuracy: float | None = Field(description="That of its last epoch.")
    selected_by: Select = Field(description="The metric on these images that it and its best epoch were selected by.")
    metric: float | None = Field(description="Its value.")
    test_accuracy: float | None = Field(
        description="Top-1 accuracy of its best weights on test images, once `evaluate` has measured it; nothing was "
        "selected on them."
    )
    checkpoint: files.Place = Field(description="File of its best weights.")
    majority_baseline: MajorityBaseline | None = Field(
        description="What always answering the largest class reaches on validation images; null where they are of one "
        "class."
    )
    why: str = Field(description="Why it was selected, in a sentence.")


class TuneResult(Result):
    """A finished search."""

    name: str = Field(description="Name of the search, and of the best trial's run.")
    run_dir: files.Place = Field(description="Folder of the search.")
    status: Literal["finished"] = "finished"
    trials: tuple[Trial, ...] = Field(description="All trials: options, epochs, val_accuracy (0 to 1), seconds...")
    best: BestTrial = Field(description="The selected trial.")
    refit: str | None = Field(description="Name of the run that was trained on all images, if one was.")
    total_s: float = Field(description="Seconds from the request to this result.")
    best_trial: Trial = Field(exclude=True, description="The selected trial, whole.")
    search: Search = Field(exclude=True, description="The search's directory; search.run is the best trial's run.")


def tune(
    config: TuneConfig,
    pairs: Sequence[str] = (),
    *,
    overwrite: bool = False,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
) -> TuneResult:
    """Run a new search.

    Args:
        config: What to search.
        pairs: More of the search space, as OPTION=VALUES.
        overwrite: Replace a search or a run of the same name.
        observer: Receives the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        stop: Asks the search to stop, its trials at checkpoints.

    Raises:
        UserError: The request is wrong (nothing was written), or all trials failed, or the search was interrupted
            (the finished trials are kept).
    """
    space = read_space(config, pairs)
    return search_space(config, space, overwrite=overwrite, observer=observer, started_at=started_at, stop=stop)


def search_space(
    config: TuneConfig,
    space: Space,
    *,
    kind: SearchKind = TUNE,
    overwrite: bool = False,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
) -> TuneResult:
    """Search a space, or train the points that it lists; otherwise as `tune`."""
    observer, started_at = observer or SearchObserver(), started_at or time.time()
    base = configure(**config.train_options)
    check_service(base.track)
    base = base.model_copy(update=absolute_paths(base))
    stored = _stored_config(config, base)
    runs.check_new(base.runs_dir, base.name, overwrite, waits=bool(base.wait))
    resources = _resources(config, kind.machines)
    with allocate_trials(base, resources, observer.warn, stop) as slots:
        space, base, data, weights = check_search(space, base, slots, observer)
        planned = planned_trials(config, space)
        at_once = min(planned, config.max_concurrent or planned)
        slots = with_shared_gpus(slots, resources, at_once, space, base, data, observer)
        stem = f"{kind.command.split()[-1]}-{data.name}"
        with runs.claim(base.runs_dir, base.name, stem, overwrite, base.wait or 0, observer.warn) as run:
            search = Search(run)
            store_weights(run, weights)
            record = SearchRecord(
                name=run.name,
                config=stored,
                space=space,
                data=data,
                device=slots.device,
                epochs=longest_training(space, config.train_options),
                planned=planned,
                created=datetime.now(UTC),
                code=code_fingerprint(),
                versions=versions(),
                command=kind.command,
                machines=kind.machines,
            )
            search.write(record)
            from resnet_ops.training.memory import count_parameters

            training.begin(run, base, data, count_parameters(base, data), 1, slots.device)
            return _execute(search, record, slots, observer, started_at, kind, stop or StopRequest())


def resume(
    runs_dir: Path,
    name: str,
    *,
    changes: dict[str, Any] | None = None,
    kind: SearchKind = TUNE,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
) -> TuneResult:
    """Resume a search: trials that have ended stay, the others continue from their checkpoints.

    Args:
        runs_dir: Folder that holds it.
        name: The search.
        changes: Options of where it runs that differ from now on.
        kind: The kind that it was started as; where `machines` is None they stay as they were.
        observer: Receives the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        stop: Asks the search to stop, its trials at checkpoints.

    Raises:
        UserError: There is no such search, its images or the code have changed, another process runs it, it does not
            fit on the machines, or the work failed.
    """
    observer, started_at = observer or SearchObserver(), started_at or time.time()
    search = find_search(runs_dir, name)
    wait_s = (changes or {}).get("wait", search.read().config.wait) or 0.0
    with search.run.lock(wait_s, observer.warn):
        record = search.read()
        if record.command != kind.command:
            resume_command = search.run.resume_command(record.command)
            raise UserError(f"{name} was not started by {kind.command}.", f"Resume with: {resume_command}")
        space, config, machines = record.space, record.config, kind.machines or record.machines
        refuse_other_code(record)
        changes = changes or {}
        base = configure(**config.train_options | changes)
        check_service(base.track)
        base = base.model_copy(update=absolute_paths(base))
        if missing := find_missing(base):
            raise UserError(
                f"The images that {name} was searched on are no longer in {missing}.",
                f"Where they are elsewhere: {search.run.resume_command(record.command)} --data FOLDER",
            )
        config = _stored_config(config.model_copy(update={"given": config.given | changes}), base)
        resources = _resources(config, machines)
        if files.is_file(search.run.weights_file):
            base = base.model_copy(update={"weights": as_typed(search.run.weights_file), "weights_key": None})
        with allocate_trials(base, resources, observer.warn, stop) as slots:
            if slots.device != record.device:
                raise UserError(
                    f"{name} was searched on {record.device}, not on {slots.device}.", "Start a new search."
                )
            space, base, data, _ = check_search(space, base, slots, observer)
            if data.fingerprint != record.data.fingerprint:
                raise UserError(
                    f"The images in {base.data} differ from those {name} was searched on.",
                    "Restore them, or start a new search.",
                )
            at_once = min(record.planned, config.max_concurrent or record.planned)
            slots = with_shared_gpus(slots, resources, at_once, space, base, data, observer)
            record = record.model_copy(update={"config": config, "machines": machines})
            search.write(record)
            return _execute(search, record, slots, observer, started_at, kind, stop or StopRequest())


def _resources(config: TuneConfig, machines: int | None) -> TrialResources:
    return TrialResources(config.cpus_per_trial, config.gpus_per_trial, config.nodes_per_trial, machines)


def _stored_config(config: TuneConfig, base: TrainConfig) -> TuneConfig:
    """Return the options as they are stored: with those of where it runs, and with absolute paths."""
    paths = {name: getattr(base, name) for name in ("data", "val_data", "data_root", "cache_dir", "runs_dir")}
    where = {name: getattr(base, name) for name in JobConfig.model_fields}
    given = {name: value for name, value in config.given.items() if name not in where}
    given |= {name: as_typed(path) for name, path in paths.items() if path is not None}
    given |= {"select": base.select}  # also where a recipe's file has it
    return config.model_copy(update={"given": given, "space": None, **where})


def _execute(
    search: Search,
    record: SearchRecord,
    slots: TrialSlots,
    observer: SearchObserver,
    started_at: float,
    kind: SearchKind,
    stop: StopRequest,
) -> TuneResult:
    from resnet_ops.tuning.runner import run_trials
    from resnet_ops.tuning.trial_log import TrialLog

    resume_command = search.run.resume_command(record.command)
    track = record.config.given.get("track", "none")
    tracker = Tracker(track, functools.partial(_log_event, search, observer), lambda _: resume_command)
    log = TrialLog(search, record, observer, tracker)
    observer.search_started(search, record, slots)
    for trial in log.trials.values():
        observer.trial_changed(trial)

    def record_stop(ended_by: Stop) -> UserError:
        log.end_search(ended_by.status, ended_by.why)
        done = f"{len(log.ended_trials)} of {record.planned} trials are done."
        return ended_by.error(record.noun.capitalize(), done, f"Resume with: {resume_command}")

    try:
        with tracker:
            if track != "none":
                log.track_ended_trials()
            if len(log.ended_trials) < record.planned:
                with training.stoppable(stop, observer, record_stop):
                    run_trials(log, slots, stop, kind.at_end)
    except KeyboardInterrupt as interrupt:
        raise record_stop(stop_of(interrupt)) from None
    except BaseException as error:
        reason = error.cause if isinstance(error, UserError) else f"{type(error).__name__}: {error}"[:500]
        log.end_search("failed", reason)
        if isinstance(error, PausedError):
            remedy = f"{error.remedy} Then resume with: {resume_command}"
            raise error.copy_with(remedy=remedy, exit_code=WORK_FAILED) from error
        raise
    return _finish(log, started_at, stop)


def _finish(log: "TrialLog", started_at: float, stop: StopRequest) -> TuneResult:
    """Record the end of a search, train the best network on all images if `refit`, and return the result.

    Raises:
        UserError: All trials failed.
    """
    search, selected = log.search, log.selected()
    if selected is None:
        log.end_search("failed", "all trials failed")
        reasons = Counter(trial.reason for trial in log.trials.values())
        counts = "; ".join(f"{count} times: {reason}" for reason, count in reasons.most_common())
        raise UserError(f"All {len(log.trials)} trials failed. {counts}", "Try other values.", WORK_FAILED)
    log.end_search("finished", "")
    trial = selected.trial
    record = search.run.read_as_written()
    refit = _refit(search, trial, log.observer, stop) if log.record.config.refit else None
    best = BestTrial(
        trial=trial.id,
        model=trial.model,
        lr=trial.lr,
        val_accuracy=trial.val_accuracy,
        last_val_accuracy=trial.last_val_accuracy,
        selected_by=log.record.select,
        metric=trial.metric,
        test_accuracy=record.best.test_accuracy if record.best else None,
        majority_baseline=majority_baseline(search.run, record),
        checkpoint=search.run.best / "model.safetensors",
        why=selected.why,
    )
    return TuneResult(
        name=search.run.name,
        run_dir=search.run.path,
        trials=tuple(trial for _, trial in sorted(log.trials.items())),
        best=best,
        refit=refit.name if refit else None,
        total_s=time.time() - started_at,
        best_trial=trial,
        search=search,
    )


def _log_event(search: Search, observer: SearchObserver, message: str) -> None:
    search.run.log_event(message)
    observer.warn(message)


def _refit(search: Search, trial: Trial, observer: Observer, stop: StopRequest) -> Run:
    """Train the best network on training and validation images, to the last epoch, as nothing is left to select on."""
    config = search.trial_run(trial).read_as_written().config
    own = {"name": f"{search.run.name}-refit", "runs_dir": search.run.path.parent, "fit_all": True, "num_to_keep": 2}
    on_validation = ("patience", "target_accuracy", "select", "expect")  # a recipe's file may hold them
    own |= {name: TrainConfig.default(name) for name in on_validation}
    return training.train(config.model_copy(update=own), overwrite=True, observer=observer, stop=stop).run
