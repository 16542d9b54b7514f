"""Configures, runs and follows a search; what the command line's `tune` calls.

Ray Tune's own memory of a search is thrown away when it ends. The search's directory is the only
one: a search that is resumed tells Tune anew what its trials did, and goes on where they stopped.
"""

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from resnet_ops import files, runs
from resnet_ops.config import JobConfig, TrainConfig
from resnet_ops.data.discovery import absolute_paths
from resnet_ops.errors import INTERRUPTED, WORK_FAILED, PausedError, UserError
from resnet_ops.options import as_typed
from resnet_ops.orchestration.packaging import code_fingerprint
from resnet_ops.orchestration.trial_slots import TrialResources, TrialSlots, allocate_trials
from resnet_ops.recipes.reading import configure
from resnet_ops.results import Result
from resnet_ops.runs import Best, Run, Status
from resnet_ops.tracking.tracker import Tracker, check
from resnet_ops.training import job as training
from resnet_ops.training.observer import Observer
from resnet_ops.training.preflight import count_parameters
from resnet_ops.tuning import results
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.preflight import check_search, planned_trials, refuse_other_code
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Trial
from resnet_ops.tuning.space import Space, read


@dataclass(frozen=True)
class SearchKind:
    """What trials are trained for.

    Args:
        command: That begins it and goes on with it.
        at_end: What workers do with each trial's session when it is trained; a function that they can import.
        machines: Of a cluster, to spread trials over; by default all there are.
    """

    command: str = "tune"
    at_end: Callable[[Any], None] | None = None
    machines: int | None = None


SEARCH = SearchKind()


class BestTrial(Result):
    """The trial that a search selected."""

    trial: int = Field(description="Its number, from 1.")
    model: str = Field(description="Network, such as resnet20.")
    lr: float = Field(description="Peak learning rate.")
    val_accuracy: float | None = Field(description="Top-1 accuracy on the validation images, from 0 to 1.")
    checkpoint: files.Place = Field(description="File of its best weights.")
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
) -> TuneResult:
    """Search anew.

    Args:
        config: What to search.
        pairs: More of it, as OPTION=VALUES.
        overwrite: Replace a search or a run of the same name.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: The request was wrong (nothing was written), or all trials failed, or it was
            interrupted (what was done before is still there).
    """
    return search_space(config, read(config, pairs), overwrite=overwrite, observer=observer, started_at=started_at)


def search_space(
    config: TuneConfig,
    space: Space,
    *,
    purpose: SearchKind = SEARCH,
    overwrite: bool = False,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
) -> TuneResult:
    """Search a space, or train the points that it gives; otherwise as `tune`."""
    observer, started_at = observer or SearchObserver(), started_at or time.time()
    base = configure(**config.train_options)
    check(base.track)
    base = base.model_copy(update=absolute_paths(base))
    settled = _settled(config, base)
    with allocate_trials(base, _trial_resources(config, purpose.machines), observer.warn) as pool:
        base, data = check_search(space, base, pool, observer)
        planned = planned_trials(config, space)
        run = runs.create(base.runs_dir, base.name, f"{purpose.command.split()[-1]}-{data.name}", overwrite)
        with run.lock():
            search = Search(run)
            record = SearchRecord(
                name=run.name,
                config=settled,
                space=space,
                data=data,
                device=pool.device,
                epochs=base.epochs,
                planned=planned,
                created=datetime.now(UTC),
                code=code_fingerprint(),
                versions=runs.versions(),
                command=purpose.command,
                machines=purpose.machines,
            )
            search.write(record)
            training.begin(run, base, data, count_parameters(base, data), 1, pool.device)
            return _execute(search, record, pool, observer, started_at, purpose)


def resume(
    runs_dir: Path,
    name: str,
    *,
    changes: dict[str, Any] | None = None,
    purpose: SearchKind = SEARCH,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
) -> TuneResult:
    """Go on with a search where it stopped: trials that are done stay, those at hand go on.

    Args:
        runs_dir: Folder that holds it.
        name: The search.
        changes: Options of where it runs that are to differ from now on.
        purpose: What it was begun for; machines that are None stay as they were.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such search, its images or the code are others than when it began,
            another process is at it, it does not fit, or the work failed.
    """
    observer, started_at = observer or SearchObserver(), started_at or time.time()
    search = results.find(runs_dir, name)
    with search.run.lock():
        record = search.read()
        if record.command != purpose.command:
            go_on = training.resume_command(search.run, record.command)
            raise UserError(f"{name} was not started by {purpose.command}.", f"Resume with: {go_on}")
        space, config, machines = record.space, record.config, purpose.machines or record.machines
        refuse_other_code(record)
        changes = changes or {}
        base = configure(**config.train_options | changes)
        check(base.track)
        base = base.model_copy(update=absolute_paths(base))
        config = _settled(config.model_copy(update={"given": config.given | changes}), base)
        with allocate_trials(base, _trial_resources(config, machines), observer.warn) as pool:
            if pool.device != record.device:
                raise UserError(f"{name} was searched on {record.device}, not on {pool.device}.", "Start a new search.")
            base, data = check_search(space, base, pool, observer)
            if data.fingerprint != record.data.fingerprint:
                raise UserError(
                    f"The images in {base.data} differ from those {name} was searched on.",
                    "Restore them, or start a new search.",
                )
            record = record.model_copy(update={"config": config, "machines": machines})
            search.write(record)
            return _execute(search, record, pool, observer, started_at, purpose)


def _trial_resources(config: TuneConfig, machines: int | None) -> TrialResources:
    return TrialResources(config.cpus_per_trial, config.gpus_per_trial, config.nodes_per_trial, machines)


def _settled(config: TuneConfig, base: TrainConfig) -> TuneConfig:
    """Return the search as it is stored: where it runs is said, and paths mean the same everywhere."""
    paths = {name: getattr(base, name) for name in ("data", "val_data", "data_root", "cache_dir", "runs_dir")}
    where = {name: getattr(base, name) for name in JobConfig.model_fields}
    given = {name: value for name, value in config.given.items() if name not in where}
    given |= {name: as_typed(path) for name, path in paths.items() if path is not None}
    return config.model_copy(update={"given": given, "space": None, **where})


def _execute(
    search: Search,
    record: SearchRecord,
    pool: TrialSlots,
    observer: SearchObserver,
    started_at: float,
    purpose: SearchKind,
) -> TuneResult:
    from resnet_ops.tuning.runner import TrialLog

    go_on = training.resume_command(search.run, record.command)
    track = record.config.given.get("track", "none")
    tracker = Tracker(track, functools.partial(_tell, search, observer), lambda _: go_on)
    board = TrialLog(search, record, observer, tracker)
    observer.search_begun(search, record, pool)
    for trial in board.trials.values():
        observer.trial_changed(trial)
    try:
        with tracker:
            if track != "none":
                board.track_settled()
            if len(board.settled) < record.planned:
                _search(search, record, pool, board, purpose)
    except KeyboardInterrupt:
        _record_end(search, board, "interrupted", "stopped by the user")
        done = f"{len(board.settled)} of {record.planned} trials are done."
        raise UserError(f"{record.what.capitalize()} stopped. {done}", f"Resume with: {go_on}", INTERRUPTED) from None
    except BaseException as error:
        reason = error.cause if isinstance(error, UserError) else f"{type(error).__name__}: {error}"[:500]
        _record_end(search, board, "failed", reason)
        if isinstance(error, PausedError):
            raise error.copy_with(remedy=f"{error.remedy} Then resume with: {go_on}", exit_code=WORK_FAILED) from error
        raise
    answer = board.answer()
    if answer is None:
        _record_end(search, board, "failed", "all trials failed")
        reasons = Counter(trial.reason for trial in board.trials.values())
        told = "; ".join(f"{count} times: {reason}" for reason, count in reasons.most_common())
        raise UserError(f"All {len(board.trials)} trials failed. {told}", "Try other values.", WORK_FAILED)
    _record_end(search, board, "finished", "")
    refit = _refit(search, answer.trial, observer) if record.config.refit else None
    trials = tuple(trial for _, trial in sorted(board.trials.items()))
    best = BestTrial(
        trial=answer.trial.id,
        model=answer.trial.model,
        lr=answer.trial.lr,
        val_accuracy=answer.trial.val_accuracy,
        checkpoint=search.run.best / "model.safetensors",
        why=answer.why,
    )
    return TuneResult(
        name=search.run.name,
        run_dir=search.run.path,
        trials=trials,
        best=best,
        refit=refit.name if refit else None,
        total_s=time.time() - started_at,
        best_trial=answer.trial,
        search=search,
    )


def _tell(search: Search, observer: SearchObserver, what: str) -> None:
    search.run.log_event(what)
    observer.warn(what)


def _search(search: Search, record: SearchRecord, pool: TrialSlots, board: Any, purpose: SearchKind) -> None:
    """Have Ray Tune search.

    Raises:
        KeyboardInterrupt: The user stopped it.
        PausedError: A disk is full.
    """
    with pool.start_ray():
        from resnet_ops.tuning.runner import run_trials

        with _scratch(search.run) as scratch, ThreadPoolExecutor(1, "tune") as thread:
            # In a thread: on the main thread Ray would take Ctrl-C for itself.
            fitting: Future[None] = thread.submit(run_trials, search, record, pool, board, scratch, purpose.at_end)
            try:
                fitting.result()
            except KeyboardInterrupt:
                board.halted.set()
                fitting.exception()
                raise


@contextlib.contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """A folder for Ray Tune, for as long as it searches."""
    place = run.path / "ray"
    try:
        yield place
    finally:
        with contextlib.suppress(OSError, UserError):
            files.remove_tree(place)


def _record_end(search: Search, board: Any, status: Status, reason: str) -> None:
    """Make the search's directory the best trial's run, as far as there is one."""
    if search.run.lost():
        return
    with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
        board.save()
        record = search.run.read_as_written()
        update: dict[str, Any] = {"status": status, "reason": reason}
        answer = board.answer()
        if answer is not None:
            search.publish(answer.trial)
            found = search.trial_run(answer.trial).read_as_written()
            own = {"name": search.run.name, "runs_dir": search.run.path.parent}
            update |= {
                "config": found.config.model_copy(update=own),
                "data": found.data,
                "parameters": found.parameters,
                "world_size": found.world_size,
                "best": Best(
                    epoch=answer.trial.best_epoch or 0,
                    val_accuracy=answer.trial.val_accuracy or 0.0,
                    checkpoint=search.run.best / "model.safetensors",
                ),
            }
        search.run.write(record.model_copy(update=update))


def _refit(search: Search, trial: Trial, observer: Observer) -> Run:
    """Train the best network in full, on all images; its validation images have been seen, and say nothing more."""
    found = search.trial_run(trial).read_as_written().config
    own = {"name": f"{search.run.name}-refit", "runs_dir": search.run.path.parent, "fit_all": True, "num_to_keep": 2}
    return training.train(found.model_copy(update=own), overwrite=True, observer=observer).run
