"""Configures, runs and follows a training job; what the command line's `train` calls.

Ray's own checkpointing is left aside on purpose. It writes its snapshot in place, refuses to
start when one old checkpoint is gone, and resumes in silence when a name is used again; and in
its local mode there is none. The run directory is the only memory a run has.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from resnet_ops import files, runs
from resnet_ops.config import TrainConfig
from resnet_ops.data.discovery import absolute_paths
from resnet_ops.data.sources import NAMED, Source
from resnet_ops.errors import INTERRUPTED, WORK_FAILED, PausedError, UserError
from resnet_ops.orchestration.allocation import Placement, allocate
from resnet_ops.orchestration.placement import Device, NoRoomError
from resnet_ops.results import Result
from resnet_ops.runs import Best, DataRecord, Run, RunRecord, Status
from resnet_ops.tracking import tracker
from resnet_ops.tracking.tracker import Tracker
from resnet_ops.training.observer import Observer, follow
from resnet_ops.training.preflight import (
    check_every_node,
    check_training,
    count_parameters,
    decode_images,
    warn_of_batch_size,
    with_largest_batch,
)

# torch comes with what is imported in the functions below: only once there is a place for the job, and while its
# machines are being asked. One that does not fit hears of it in 2 s.


class TrainResult(Result):
    """A finished training."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    model: str = Field(description="Network, such as resnet20.")
    data: str = Field(description="Name of the data set.")
    epochs: int = Field(description="Epochs trained, those before a resume included.")
    world_size: int = Field(description="Number of workers.")
    device: str = Field(description="cpu or cuda.")
    parameters: int = Field(description="Number of parameters.")
    best: Best = Field(description="The epoch that validated best: epoch, val_accuracy (0 to 1), checkpoint.")
    images_per_second: float | None = Field(description="Median over epochs of the training images per second.")
    time_to_first_step_s: float | None = Field(description="Seconds from the request to the end of the first step.")
    time_after_last_step_s: float | None = Field(description="Seconds from the end of the last step to this result.")
    total_s: float = Field(description="Seconds from the request to this result.")
    run: Run = Field(exclude=True, description="The run directory.")
    record: RunRecord = Field(exclude=True, description="run.json.")


def train(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    started_at: float | None = None,
    halt: threading.Event | None = None,
    tracked: bool = True,
) -> TrainResult:
    """Train a new run.

    Args:
        config: What to train.
        overwrite: Replace a run of the same name.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        halt: Where the workers are Ray's: once set, they are stopped, as by Ctrl-C.
        tracked: Whether TensorBoard's files are written, `config.track` is told, and users are told how to go on
            here, and not by whoever calls.

    Raises:
        UserError: The request was wrong (nothing was written), or the work failed or was
            interrupted (what was saved before is still there).
    """
    observer, started_at = observer or Observer(), started_at or time.time()
    tracker.check(config.track)
    config = config.model_copy(update=absolute_paths(config))  # machines have other working directories
    with allocate(config, observer.warn) as placement:
        with check_every_node(placement.remote_nodes, config.runs_dir.absolute(), config) as compare:
            asked = config
            source, config = check_training(asked, placement.layout.device)
            compare(source.record.fingerprint)
        warn_of_batch_size(asked, config, source.record, observer)
        source = decode_images(source, config, observer)
        if config.auto_batch:
            config = with_largest_batch(config, source.record, placement, observer)
        parameters = count_parameters(config, source.record)
        run = runs.create(config.runs_dir, config.name, f"{config.model}-{source.record.name}", overwrite)
        with run.lock():
            layout = placement.layout
            record = begin(run, config, source.record, parameters, layout.workers, layout.device)
            observer.run_created(run, record)
            return _execute(run, record, source, placement, observer, started_at, halt, tracked)


def resume(
    runs_dir: Path,
    name: str,
    *,
    changes: dict[str, Any] | None = None,
    observer: Observer | None = None,
    started_at: float | None = None,
    halt: threading.Event | None = None,
    tracked: bool = True,
) -> TrainResult:
    """Go on with a run where it stopped; one that is finished is returned as it is.

    Args:
        runs_dir: Folder that holds the run.
        name: The run.
        changes: Options of where it runs that are to differ from now on.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        halt: As for `train`.
        tracked: As for `train`.

    Raises:
        UserError: There is no such run, its data changed or is gone, another process trains it,
            its workers do not fit, or the work failed.
    """
    observer, started_at = observer or Observer(), started_at or time.time()
    run = runs.find(runs_dir, name)
    if files.is_file(run.search_file):
        command = json.loads(files.read(run.search_file)).get("command", "tune")
        what = "search" if command == "tune" else "study"
        raise UserError(f"{name} is a {what}.", f"Resume it with: resnet-ops {command} --resume {name}")
    with run.lock():
        record = run.read()
        if record.status == "finished":
            observer.run_created(run, record)
            observer.warn(f"{name} is finished: all {record.config.epochs} epochs are done.")
            if record.config.track != "none" and tracked:
                with Tracker(record.config.track, observer.warn, resume_command) as late:
                    late.look(run)  # at what could not be told then
            return _result(run, record, (), started_at)
        config = record.config.model_copy(update=changes or {})
        config = config.model_copy(update=absolute_paths(config))
        tracker.check(config.track)
        with allocate(config, observer.warn) as placement:
            with check_every_node(placement.remote_nodes, run.path, config) as compare:
                source, _ = check_training(config, placement.layout.device)
                compare(source.record.fingerprint)
            if source.record.fingerprint != record.data.fingerprint:
                raise UserError(
                    f"The images in {config.data} differ from those {name} was trained on.",
                    "Restore them, or train a new run.",
                )
            layout = placement.layout
            for before, after in ((record.device, layout.device), (record.world_size, layout.workers)):
                if before != after:
                    what = "" if isinstance(before, str) else " workers"
                    observer.warn(
                        f"{name} was started on {before}{what} and resumes on {after}{what}; results will differ."
                    )
            update = {
                "status": "running",
                "reason": "",
                "config": config,
                "device": layout.device,
                "world_size": layout.workers,
                "resumed": record.resumed + 1,
            }
            record = run.write(record.model_copy(update=update))
            observer.run_created(run, record)
            return _execute(run, record, source, placement, observer, started_at, halt, tracked)


def begin(run: Run, config: TrainConfig, data: DataRecord, parameters: int, workers: int, device: Device) -> RunRecord:
    """Write what a new run is into its directory."""
    now = datetime.now(UTC)
    return run.write(
        RunRecord(
            name=run.name,
            status="running",
            created=now,
            updated=now,
            config=config.model_copy(update={"name": run.name, "runs_dir": run.path.parent}),
            data=data,
            parameters=parameters,
            world_size=workers,
            device=device,
            host=runs.host(),
            versions=runs.versions(),
        )
    )


def _execute(
    run: Run,
    record: RunRecord,
    source: Source,
    placement: Placement,
    observer: Observer,
    started_at: float,
    halt: threading.Event | None,
    tracked: bool,
) -> TrainResult:
    from resnet_ops.training.fit import fit

    with _followed(run, observer, tracked):
        try:
            if record.resumed:
                _tell_where_it_stands(run, observer)
            outcome = fit(run, record, source, placement, halt)
        except KeyboardInterrupt:
            _record_end(run, record, "interrupted", "stopped by the user")
            raise UserError(
                f"Training stopped. {_last_good(run)}", f"Resume with: {resume_command(run)}", exit_code=INTERRUPTED
            ) from None
        except UserError as error:
            _record_end(run, record, "failed", error.cause)
            if error.exit_code != WORK_FAILED:
                raise
            goes_on = tracked and isinstance(error, PausedError | NoRoomError)
            on = f" Then resume with: {resume_command(run)}" if goes_on else ""
            raise error.copy_with(cause=f"{error.cause} {_last_good(run)}", remedy=error.remedy + on) from error
        except BaseException as error:
            _record_end(run, record, "failed", f"{type(error).__name__}: {error}"[:500])
            raise
        update: dict[str, Any] = {"status": "finished", "best": _best(run)}
        if outcome.bad:  # met by workers that stream
            named = {"bad_images": len(outcome.bad), "first_bad_images": outcome.bad[:NAMED]}
            update["data"] = record.data.model_copy(update=named)
        record = run.write(record.model_copy(update=update))
    return _result(run, record, outcome.steps_at, started_at)


@contextlib.contextmanager
def _followed(run: Run, observer: Observer, tracked: bool) -> Iterator[None]:
    """Have the observer told what appears in the run directory, and those who track it."""
    if not tracked:
        with follow(run, observer, lambda _: None):
            yield
        return
    telling = Tracker(run.read_as_written().config.track, run.log_event, resume_command)
    telling.look(run)
    with follow(run, observer, telling.look), telling:  # whose last words are heard
        yield


def _tell_where_it_stands(run: Run, observer: Observer) -> None:
    from resnet_ops.training.checkpoint import Checkpoints

    latest, refused = Checkpoints(run, 1).latest()
    for reason in refused:
        observer.warn(f"Skipping a checkpoint: {reason}")
    begin = "from the start"
    if latest is not None:
        begin = f"from epoch {latest.info.epoch}" + (f", step {latest.info.step}" if latest.info.step else "")
    observer.warn(f"Resuming {begin}.")


def _record_end(run: Run, record: RunRecord, status: Status, reason: str) -> None:
    if run.lost():
        return  # it is another process's to say
    with contextlib.suppress(OSError, UserError):  # a full disk must not hide why the work ended
        run.write(record.model_copy(update={"status": status, "reason": reason}))


def _last_good(run: Run) -> str:
    from resnet_ops.training.checkpoint import saved_checkpoints

    try:
        there = saved_checkpoints(run)
    except PausedError:  # why it stopped is said already
        return ""
    return f"Last intact checkpoint: {there[0]}." if there else "No checkpoint has been saved yet."


def resume_command(run: Run, command: str = "train") -> str:
    """What to type to go on with a run, or, with "tune", with a search."""
    where = "" if run.path.parent == Path("runs").absolute() else f" --runs-dir {run.path.parent}"
    return f"resnet-ops {command} --resume {run.name}{where}"


def _best(run: Run) -> Best | None:
    from resnet_ops.training.checkpoint import read_best

    checkpoint, _ = read_best(run)
    metrics = checkpoint.info.validated
    return Best(epoch=metrics.epoch, val_accuracy=metrics.val_accuracy, checkpoint=checkpoint.path)


def _result(run: Run, record: RunRecord, steps_at: tuple[float, ...], started_at: float) -> TrainResult:
    epochs = run.epochs()
    rates = sorted(epoch.images_per_second for epoch in epochs)
    now = time.time()
    assert record.best is not None  # as of every run that is finished
    return TrainResult(
        name=run.name,
        run_dir=run.path,
        status=record.status,
        model=record.config.model,
        data=record.data.name,
        epochs=len(epochs),
        world_size=record.world_size,
        device=record.device,
        parameters=record.parameters,
        best=record.best,
        images_per_second=rates[len(rates) // 2] if rates else None,
        time_to_first_step_s=steps_at[0] - started_at if steps_at else None,
        time_after_last_step_s=now - steps_at[-1] if steps_at else None,
        total_s=now - started_at,
        run=run,
        record=record,
    )
