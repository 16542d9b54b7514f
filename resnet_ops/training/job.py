"""Trains or resumes a run, from its configuration to its result; `resnet-ops train` calls it.

Ray Train's own checkpointing is not used: it writes its snapshot in place, refuses to start when one old checkpoint is
gone, resumes in silence when a name is used again, and does nothing in its local mode. A run's state is its directory.
"""

import contextlib
import functools
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from resnet_ops import files, runs
from resnet_ops.class_metrics import ClassRecall, MajorityBaseline, worst_classes
from resnet_ops.config import EXTENDING, TEST_NAME, TrainConfig
from resnet_ops.data.discovery import absolute_paths, find_missing
from resnet_ops.data.sources import MAX_LISTED, Source
from resnet_ops.errors import WORK_FAILED, PausedError, RunLostError, UserError
from resnet_ops.machine import versions
from resnet_ops.orchestration.allocation import Placement, allocate
from resnet_ops.orchestration.placement import Device, NoRoomError
from resnet_ops.results import Result
from resnet_ops.run_records import Best, DataRecord, RunRecord, StartRecord, Status, Writer
from resnet_ops.runs import Run
from resnet_ops.stop_request import Stop, StopRequest, stop_of
from resnet_ops.tracking import tracker
from resnet_ops.tracking.tracker import Tracker
from resnet_ops.training.defaults import (
    explain_choices,
    majority_baseline,
    report_defaults,
    suggest_weights,
    warn_of_mirroring,
)
from resnet_ops.training.early_end import early_end, extend
from resnet_ops.training.image_preparation import check_every_node, decode_images
from resnet_ops.training.observer import Observer, follow
from resnet_ops.training.overview import describe
from resnet_ops.training.preflight import (
    check_shares,
    check_training,
    warn_of_double_balance,
    with_largest_batch,
)
from resnet_ops.training.start import settle_head, start_weights, store_weights, with_start

if TYPE_CHECKING:
    from resnet_ops.training.worker import WorkerResult

# torch is imported by what is imported in the functions below: only once the job is allocated, while its nodes are
# being asked. A job that does not fit is refused within 2 s.


class TrainResult(Result):
    """A finished training."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    reason: str = Field(description="Why it ended before its last epoch, if it did.")
    model: str = Field(description="Network, such as resnet20.")
    data: str = Field(description="Name of the dataset.")
    epochs: int = Field(description="Epochs trained, those before a resume included.")
    world_size: int = Field(description="Number of workers.")
    device: str = Field(description="cpu or cuda.")
    parameters: int = Field(description="Number of parameters.")
    augmentation: str = Field(description="Augmentation of the training images, in words.")
    best: Best = Field(
        description="The selected epoch: epoch, checkpoint, val_accuracy and other metrics of the validation images "
        "(0 to 1, on the images that it was selected on), last_val_accuracy (of the last epoch), selected_by (the "
        "metric), selected_on, test_accuracy (once `evaluate` has measured it on test images)."
    )
    test_images: int = Field(description="Test images, which training does not touch; `evaluate` measures on them.")
    worst_classes: tuple[ClassRecall, ...] = Field(
        description="Classes of the lowest recall on validation images, below the accuracy on all beyond chance."
    )
    majority_baseline: MajorityBaseline | None = Field(
        description="What always answering the largest class reaches on validation images; null with --fit-all, or "
        "where they are of one class."
    )
    fit_all: bool = Field(description="Whether it is fitted on all images: then there is no validation accuracy.")
    images_per_second: float | None = Field(description="Median over epochs of the training images per second.")
    time_to_first_step_s: float | None = Field(description="Seconds from the request to the end of the first step.")
    time_after_last_step_s: float | None = Field(description="Seconds from the end of the last step to this result.")
    total_s: float = Field(description="Seconds from the request to this result.")
    epochs_s: float = Field(description="Seconds that all epochs took, those before a resume included.")
    run: Run = Field(exclude=True, description="The run directory.")
    record: RunRecord = Field(exclude=True, description="run.json.")


def train(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
    tracked: bool = True,
) -> TrainResult:
    """Train a new run.

    Args:
        config: What to train.
        overwrite: Replace a run of the same name.
        observer: Receives the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        stop: Asks the training to stop, at a checkpoint.
        tracked: Whether TensorBoard's files, `config.track` and the user's command to resume are written here, and not
            by the caller.

    Raises:
        UserError: The request was wrong (nothing was written), or the work failed or was
            interrupted (what was saved before is still there).
    """
    observer, started_at = observer or Observer(), started_at or time.time()
    tracker.check_service(config.track)
    config = config.model_copy(update=absolute_paths(config))  # nodes have other working directories
    runs.check_new(config.runs_dir, config.name, overwrite, waits=bool(config.wait))
    with allocate(config, observer.warn, stop) as placement:
        with check_every_node(placement.remote_nodes, config.runs_dir.absolute(), config) as compare:
            asked, layout = config, placement.layout
            requested, weights = start_weights(asked, layout.device, observer)
            source, config = check_training(requested, layout.device, workers=layout.workers)
            source, start = with_start(source, requested, weights, observer)
            config = settle_head(requested, config, start)
            compare(source.record.fingerprint)
        warn_of_mirroring(requested, source.record, observer)
        warn_of_double_balance(config, observer)
        source = decode_images(source, config, observer)
        choices = tuple(explain_choices(asked, config, source.record, layout.device))
        hint = suggest_weights(asked, source.record)
        if config.auto_batch:
            config = with_largest_batch(config, source.record, placement, observer)
        report_defaults(requested, config, layout.device, observer)
        check_shares(config, layout.workers)
        from resnet_ops.training.memory import count_parameters

        parameters = count_parameters(config, source.record)
        stem = f"{config.model}-{source.record.name}"
        with runs.claim(config.runs_dir, config.name, stem, overwrite, config.wait or 0, observer.warn) as run:
            store_weights(run, weights)
            record = begin(run, config, source.record, parameters, layout.workers, layout.device, start)
            observer.run_created(run, record, describe(source, record, choices, hint))
            record, steps_at = _work(run, record, source, placement, observer, stop, tracked)
            return _result(run, record, steps_at, started_at)


def resume(
    runs_dir: Path,
    name: str,
    *,
    changes: dict[str, Any] | None = None,
    observer: Observer | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
    tracked: bool = True,
) -> TrainResult:
    """Resume a run from its last intact checkpoint; one that is finished is returned as it is, unless it is given more.

    Args:
        runs_dir: Folder that holds the run.
        name: The run.
        changes: Options that differ from now on: those of where it runs, and `EXTENDING`, such as more epochs.
        observer: Receives the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        stop: As for `train`.
        tracked: As for `train`.

    Raises:
        UserError: There is no such run, it would train no further with these changes, its data changed or is gone,
            another process trains it, its workers do not fit, or the work failed.
    """
    observer, started_at = observer or Observer(), started_at or time.time()
    run = runs.find(runs_dir, name)
    if files.is_file(run.search_file):
        command = json.loads(files.read(run.search_file)).get("command", "tune")
        kind = "search" if command == "tune" else "study"
        raise UserError(f"{name} is a {kind}.", f"Resume it with: resnet-ops {command} --resume {name}")
    wait_s = (changes or {}).get("wait", run.read_as_written().config.wait) or 0.0
    with run.lock(wait_s, observer.warn):
        record = _named_as_its_folder(run)
        record, extended = _with_changes(run, record, changes or {})
        config = record.config
        if record.status == "finished":
            observer.run_created(run, record)
            observer.warn(_why_finished(run, record))
            if record.config.track != "none" and tracked:
                with Tracker(record.config.track, observer.warn, Run.resume_command) as own_tracker:
                    own_tracker.update(run)  # for what could not be logged then
            return _result(run, record, (), started_at)
        tracker.check_service(config.track)
        with allocate(config, observer.warn, stop) as placement:
            if missing := find_missing(config):
                raise UserError(
                    f"The images that {name} was trained on are no longer in {missing}.",
                    f"Where they are elsewhere: {run.resume_command()} --data FOLDER",
                )
            with check_every_node(placement.remote_nodes, run.path, config) as compare:
                source, _ = check_training(config, placement.layout.device, resumes=True)
                compare(source.record.fingerprint)
            _check_same_images(run, record, source)
            layout = placement.layout
            for before, after in ((record.device, layout.device), (record.world_size, layout.workers)):
                if before != after:
                    unit = "" if isinstance(before, str) else " workers"
                    observer.warn(
                        f"{name} was started on {before}{unit} and resumes on {after}{unit}; results will differ."
                    )
            update = {
                "status": "running",
                "reason": "",
                "best": None,
                "device": layout.device,
                "world_size": layout.workers,
                "resumed": record.resumed + 1,
            }
            previous, writer = record.writer, this_writer()
            record = run.write(record.model_copy(update=update).written_by(writer))
            # Of the images that were decoded then: the record has counted the broken ones.
            observer.run_created(run, record, describe(replace(source, record=record.data), record))
            if differences := writer.differences(previous):
                observer.warn(f"{name} resumes with {differences}.")
            if record.unknown:
                observer.warn(
                    f"{name} has what this version does not know, kept without effect: {', '.join(record.unknown)}."
                )
            if extended:
                run.log_event(extended)
                observer.warn(extended)
            record, steps_at = _work(run, record, source, placement, observer, stop, tracked)
            return _result(run, record, steps_at, started_at)


def _work(
    run: Run,
    record: RunRecord,
    source: Source,
    placement: Placement,
    observer: Observer,
    stop: StopRequest | None,
    tracked: bool,
) -> tuple[RunRecord, tuple[float, ...]]:
    """Train a run to its end, and return its record and when its first and last steps ended.

    Raises:
        UserError: The work failed or was stopped, which is then in the record.
    """
    with _followed(run, observer, tracked):
        with (
            _end_recorded(run, record, tracked),
            stoppable(stop, observer, functools.partial(_record_stop, run, record)) as request,
        ):
            from resnet_ops.training.launch import launch_workers

            if record.resumed:
                _report_resume_point(run, observer)
            result = launch_workers(run, record, source, placement, request)
        return _finish(run, record, result), result.steps_at


def _named_as_its_folder(run: Run) -> RunRecord:
    """Read the record of a run: a copy of a run goes on as another one, and a link to one as that."""
    record, name = run.read(), run.name if files.is_remote(run.path) else run.path.resolve().name
    return record.model_copy(update={"name": name, "config": record.config.model_copy(update={"name": name})})


def _with_changes(run: Run, record: RunRecord, changes: dict[str, Any]) -> tuple[RunRecord, str]:
    """Return the record of a run with options that differ from now on, and what more epochs mean, if it gets any.

    A finished run that is given more is no longer finished.

    Raises:
        UserError: A change is wrong, or of a finished run and of no effect.
    """
    changed = TrainConfig.of(fit_all=record.config.fit_all, **changes)  # model_copy does not validate
    update = {name: getattr(changed, name) for name in changes if name != "epochs"}
    config = record.config.model_copy(update=update)
    record = record.model_copy(update={"config": config.model_copy(update=absolute_paths(config))})
    epochs, meaning = run.epochs(), ""
    if "epochs" in changes and changed.epochs != config.epochs:
        extension = extend(record, changed.epochs, len(epochs))
        record = record.model_copy(update={"config": extension.config, "extended_after": extension.after})
        meaning = extension.meaning
    if record.status == "finished" and EXTENDING & changes.keys() and len(epochs) < record.config.epochs:
        if end := early_end(record.config, epochs, record.extended_after):
            epochs_too = f" --epochs {changed.epochs}" if "epochs" in changes else ""
            remedy = f"Use {run.resume_command()} {end.option}{epochs_too}"
            raise UserError(f"{run.name} would train no further: {end.reason}.", remedy)
        if not any(path.name.startswith("epoch-") for path in files.listed(run.checkpoints)):
            raise UserError(f"{run.name} has no checkpoint to go on from.", "Train a new run.")
        record = record.model_copy(update={"status": "interrupted"})
    return record, meaning


def _why_finished(run: Run, record: RunRecord) -> str:
    """Say why a run is finished, and how it is given more."""
    done = run.epochs()
    end = early_end(record.config, done, record.extended_after)
    option = end.option if end else f"--epochs {2 * record.config.epochs}"
    why = record.reason or f"all {record.config.epochs} epochs are done"
    return f"{run.name} is finished: {why}. To train it further: {run.resume_command()} {option}"


def _check_same_images(run: Run, record: RunRecord, source: Source) -> None:
    """Check that the images are those that a run began with, of which the same are held out.

    Raises:
        UserError: They are others.
    """
    if source.record.fingerprint != record.data.fingerprint:
        raise _other_images(record.name, record.data, source)
    held_out = None if record.config.fit_all else run.held_out()
    if held_out and source.held_out_images not in (None, held_out):
        raise UserError(
            f"Of {source.config.data} other validation images would be held out than {record.name} has begun with, and "
            "it would be trained on those: test images were added or removed.",
            "Restore them, or train a new run.",
        )


def _other_images(name: str, trained_on: DataRecord, source: Source) -> UserError:
    data = source.config.data
    if source.record.test_images and not trained_on.test_images and "val" not in source.splits:
        return UserError(
            f"{name} may have been trained before test images and validation images were told apart: of {data} it then "
            "chose on the test images, and now others are held out to choose on.",
            f"Train a new run: --data {data} --val-data {TEST_NAME} chooses on the test images as before.",
        )
    return UserError(
        f"The images in {data} differ from those {name} was trained on.", "Restore them, or train a new run."
    )


def begin(
    run: Run,
    config: TrainConfig,
    data: DataRecord,
    parameters: int,
    workers: int,
    device: Device,
    start: StartRecord | None = None,
) -> RunRecord:
    """Write run.json of a new run."""
    now, writer = datetime.now(UTC), this_writer()
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
            host=writer.host,
            versions=writer.versions,
            start=start,
            writers=(writer,),
        )
    )


def this_writer() -> Writer:
    """Return what this process writes runs with."""
    return Writer(since=datetime.now(UTC), host=socket.gethostname(), versions=versions())


@contextlib.contextmanager
def stoppable(
    stop: StopRequest | None, observer: Observer, record: Callable[[Stop], UserError]
) -> Iterator[StopRequest]:
    """Have signals stop the work at a checkpoint, for the length of a `with` block.

    Args:
        stop: What signals ask; by default nobody does.
        observer: Receives that they did.
        record: Records why the work stopped, and returns what the user is told.
    """
    request = stop or StopRequest()
    request.record = record
    with request.deferring(observer.stopping):
        yield request


@contextlib.contextmanager
def _end_recorded(run: Run, record: RunRecord, tracked: bool) -> Iterator[None]:
    """Record in run.json how training ended where it does not finish, and add to the error how to resume."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise _record_stop(run, record, stop_of(interrupt)) from None
    except RunLostError:
        raise  # what is recorded there is another process's
    except UserError as error:
        _record_end(run, record, "failed", error.cause)
        if error.exit_code != WORK_FAILED:
            raise
        resumable = tracked and isinstance(error, PausedError | NoRoomError)
        resuming = f" Then resume with: {run.resume_command()}" if resumable else ""
        raise error.copy_with(cause=f"{error.cause} {_last_intact(run)}", remedy=error.remedy + resuming) from error
    except BaseException as error:
        _record_end(run, record, "failed", f"{type(error).__name__}: {error}"[:500])
        raise


def _finish(run: Run, record: RunRecord, result: "WorkerResult") -> RunRecord:
    """Record a finished training in run.json."""
    from resnet_ops.training.checkpoint import read_best

    best, _ = read_best(run)
    selected = Best.of(best.info.validated, run.epochs()[-1], best.path, record.config.select)
    reason = result.early_end.reason if result.early_end else ""
    update: dict[str, Any] = {"status": "finished", "reason": reason, "best": selected}
    if result.bad_images:  # met by workers that stream
        bad = {
            "val_images": record.data.val_images - len(result.bad_val_images),
            "bad_images": len(result.bad_images),
            "first_bad_images": result.bad_images[:MAX_LISTED],
        }
        update["data"] = record.data.model_copy(update=bad)
    return run.write(record.model_copy(update=update))


@contextlib.contextmanager
def _followed(run: Run, observer: Observer, tracked: bool) -> Iterator[None]:
    """Report to the observer and to trackers what appears in the run directory, for the length of a `with` block."""
    if not tracked:
        with follow(run, observer, lambda _: None):
            yield
        return
    own_tracker = Tracker(run.read_as_written().config.track, run.log_event, Run.resume_command)
    own_tracker.update(run)
    with follow(run, observer, own_tracker.update), own_tracker:  # whose last warnings are still followed
        yield


def _report_resume_point(run: Run, observer: Observer) -> None:
    from resnet_ops.training.checkpoint import CheckpointStore

    latest, refused = CheckpointStore(run, 1).latest()
    for reason in refused:
        observer.warn(f"Skipping a checkpoint: {reason}")
    resume_point = "from the start"
    if latest is not None:
        done, step = latest.info.epoch, latest.info.step
        resume_point = f"after step {step} of epoch {done + 1}" if step else f"after epoch {done}"
    observer.warn(f"Resuming {resume_point}.")


def _record_stop(run: Run, record: RunRecord, stop: Stop) -> UserError:
    """Record in run.json why training stopped, and return what the user is told."""
    _record_end(run, record, stop.status, stop.why)
    return stop.error("Training", _last_intact(run), f"Resume with: {run.resume_command()}")


def _record_end(run: Run, record: RunRecord, status: Status, reason: str) -> None:
    with contextlib.suppress(OSError, UserError):  # a full disk must not hide why the work ended
        run.write(record.model_copy(update={"status": status, "reason": reason}))


def _last_intact(run: Run) -> str:
    from resnet_ops.training.checkpoint import saved_checkpoints

    try:
        saved = saved_checkpoints(run)
    except PausedError:  # why it stopped is said already
        return ""
    return f"Last intact checkpoint: {saved[0]}." if saved else "No checkpoint has been saved yet."


def _result(run: Run, record: RunRecord, steps_at: tuple[float, ...], started_at: float) -> TrainResult:
    epochs = run.epochs()
    rates = sorted(epoch.images_per_second for epoch in epochs)
    now = time.time()
    assert record.best is not None  # as of every run that is finished
    return TrainResult(
        name=run.name,
        run_dir=run.path,
        status=record.status,
        reason=record.reason,
        model=record.config.model,
        data=record.data.name,
        epochs=len(epochs),
        world_size=record.world_size,
        device=record.device,
        parameters=record.parameters,
        augmentation=record.augmentation,
        best=record.best,
        test_images=record.data.test_images,
        worst_classes=worst_classes(record.data.class_names, run.val_classes()),
        majority_baseline=majority_baseline(run, record),
        fit_all=record.config.fit_all,
        images_per_second=rates[len(rates) // 2] if rates else None,
        time_to_first_step_s=steps_at[0] - started_at if steps_at else None,
        time_after_last_step_s=now - steps_at[-1] if steps_at else None,
        total_s=now - started_at,
        epochs_s=sum(epoch.seconds for epoch in epochs),
        run=run,
        record=record,
    )
