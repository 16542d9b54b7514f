"""Configures, runs and follows a training job; what the command line's `train` calls.

Ray's own checkpointing is left aside on purpose. It writes its snapshot in place, refuses to
start when one old checkpoint is gone, and resumes in silence when a name is used again; and in
its local mode there is none. The run directory is the only memory a run has.
"""

import contextlib
import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resnet_ops import files, models, runs
from resnet_ops.config import TrainConfig
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import INTERRUPTED, WORK_FAILED, PausedError, UserError
from resnet_ops.orchestration.cluster import Placement, placed
from resnet_ops.orchestration.connect import import_ray
from resnet_ops.runs import Best, Run, RunRecord, Status
from resnet_ops.training.checkpoint import Checkpoints, read_best, saved
from resnet_ops.training.observer import Observer, follow

if TYPE_CHECKING:
    from resnet_ops.training.worker import Outcome

RECOVER_S = 600.0  # how long to wait for machines after a loss, where --wait does not say


@dataclass(frozen=True)
class TrainResult:
    """What a finished job did. Times are seconds since `started_at`, or as their names say."""

    run: Run
    record: RunRecord
    epochs: int
    images_per_second: float | None
    time_to_first_step_s: float | None
    time_after_last_step_s: float | None
    total_s: float


def train(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    started_at: float | None = None,
) -> TrainResult:
    """Train a new run.

    Args:
        config: What to train.
        overwrite: Replace a run of the same name.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: The request was wrong (nothing was written), or the work failed or was
            interrupted (what was saved before is still there).
    """
    observer, started_at = observer or Observer(), started_at or time.time()
    with placed(config, observer.notice) as placement:
        source, config = check(config)
        _check_everywhere(placement, config.runs_dir.absolute(), config.data, source.record.fingerprint)
        with torch.device("meta"):  # only to be counted
            network = models.build(
                config.model,
                num_classes=len(source.record.class_names),
                in_channels=source.record.channels,
                shortcut=config.shortcut,
            )
        run = runs.create(config.runs_dir, config.name, f"{config.model}-{source.record.name}", overwrite)
        now = datetime.now(UTC)
        with run.lock():
            record = run.write(
                RunRecord(
                    name=run.name,
                    status="running",
                    created=now,
                    updated=now,
                    config=config.model_copy(update={"name": run.name, "runs_dir": run.path.parent}),
                    data=source.record,
                    parameters=models.count_parameters(network),
                    world_size=placement.layout.workers,
                    device=placement.layout.device,
                    host=runs.host(),
                    versions=runs.versions(),
                )
            )
            observer.run_created(run, record)
            return _execute(run, record, placement, observer, started_at)


def resume(
    runs_dir: Path,
    name: str,
    *,
    changes: dict[str, Any] | None = None,
    observer: Observer | None = None,
    started_at: float | None = None,
) -> TrainResult:
    """Go on with a run where it stopped; one that is finished is returned as it is.

    Args:
        runs_dir: Folder that holds the run.
        name: The run.
        changes: Options of where it runs that are to differ from now on.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such run, its data changed or is gone, another process trains it,
            its workers do not fit, or the work failed.
    """
    observer, started_at = observer or Observer(), started_at or time.time()
    run = runs.find(runs_dir, name)
    with run.lock():
        record = run.read()
        if record.status == "finished":
            observer.run_created(run, record)
            observer.notice(f"{name} is finished: all {record.config.epochs} epochs are trained.")
            return _result(run, record, (), started_at)
        config = record.config.model_copy(update=changes or {})
        with placed(config, observer.notice) as placement:
            source, _ = check(config)
            if source.record.fingerprint != record.data.fingerprint:
                raise UserError(
                    f"The images in {config.data} are not those that {name} was trained on.",
                    "Bring the old ones back, or train a new run.",
                )
            _check_everywhere(placement, run.path, config.data, record.data.fingerprint)
            layout = placement.layout
            for before, after in ((record.device, layout.device), (record.world_size, layout.workers)):
                if before != after:
                    what = "" if isinstance(before, str) else " workers"
                    observer.notice(f"{name} began on {before}{what}; it goes on, and will differ, on {after}{what}.")
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
            return _execute(run, record, placement, observer, started_at)


def check(config: TrainConfig) -> tuple[Source, TrainConfig]:
    """Check that network and images fit each other, and settle what depends on them.

    Returns:
        The images, and the configuration with every default resolved.

    Raises:
        UserError: They do not fit.
    """
    architecture = models.parse_name(config.model)
    source = open_source(config.data)
    data = source.record
    models.check_image_size(architecture, (data.height, data.width))
    if config.batch_size > data.train_images:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {data.train_images} training images of {data.name}.",
            f"Take at most {data.train_images}.",
        )
    side = min(data.height, data.width)
    padding = side // 8 if config.crop_padding is None else config.crop_padding
    if padding > side:
        raise UserError(f"--crop-padding {padding} is more than the images' {side} pixels.", f"Try {side // 8}.")
    shortcut = config.shortcut or (architecture.default_shortcut if architecture.kind == "resnet" else None)
    update = {
        "model": architecture.name,
        "shortcut": shortcut,
        "data": config.data if source.embedded else str(Path(config.data).expanduser().absolute()),
        "crop_padding": padding,
        "flip": source.mirrors if config.flip is None else config.flip,
    }
    return source, config.model_copy(update=update)


def _check_everywhere(placement: Placement, folder: Path, data: str, fingerprint: str) -> None:
    """Before many machines begin: each sees the folder of the run, and the same images.

    Raises:
        UserError: One does not.
    """
    if placement.local:
        return
    from resnet_ops.orchestration.everywhere import ask, prove_shared

    nodes = [node for node, _ in placement.layout.on]
    prove_shared(folder, nodes)
    for node, found in ask(nodes, fingerprint_of, data).items():
        if found != fingerprint:
            raise UserError(
                f"The images in {data} on {node.name} are not those on this machine.", "Give every machine the same."
            )


def fingerprint_of(data: str) -> str:
    """On a machine: the fingerprint of the images that it sees."""
    return open_source(data).record.fingerprint


def _execute(run: Run, record: RunRecord, placement: Placement, observer: Observer, started_at: float) -> TrainResult:
    with follow(run, observer):
        try:
            if record.resumed:
                _tell_where_it_stands(run, observer)
            steps_at = _fit(run, record, placement)
        except KeyboardInterrupt:
            _record_end(run, record, "interrupted", "stopped by the user")
            raise UserError(
                f"Training stopped. {_last_good(run)}", f"Go on with: {_resume_command(run)}", exit_code=INTERRUPTED
            ) from None
        except UserError as error:
            _record_end(run, record, "failed", error.cause)
            if error.exit_code != WORK_FAILED:
                raise
            on = f" Then go on with: {_resume_command(run)}" if isinstance(error, PausedError) else ""
            raise UserError(f"{error.cause} {_last_good(run)}", error.remedy + on, WORK_FAILED) from error
        except BaseException as error:
            _record_end(run, record, "failed", f"{type(error).__name__}: {error}"[:500])
            raise
    record = run.write(record.model_copy(update={"status": "finished", "best": _best(run)}))
    return _result(run, record, steps_at, started_at)


def _fit(run: Run, record: RunRecord, placement: Placement) -> tuple[float, ...]:
    """Run the workers to the end; returns when the first and the last step ended."""
    import_ray()
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from resnet_ops.training.worker import Job, work

    # Ray keeps nothing there that is needed again, so it need not be shared.
    scratch = RunConfig(name=f"at-{time.time_ns()}", **files.for_arrow(run.path / "ray"))
    if placement.in_process:
        job = Job(str(run.path), int(placement.layout.cpus))
        use_gpu = placement.layout.device == "cuda"
        return _steps_at(
            TorchTrainer(
                work,  # type: ignore[arg-type]  # Ray's hint forgets that a value may be returned
                train_loop_config=job,  # type: ignore[arg-type]  # any object is handed over as it is
                scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu),
                run_config=scratch,
            ).fit()
        )
    try:
        with placement.ray():
            return _fit_on_ray(run, record, placement, scratch)
    finally:
        with contextlib.suppress(OSError, UserError):
            files.remove_tree(run.path / "ray")


def _fit_on_ray(run: Run, record: RunRecord, placement: Placement, scratch: Any) -> tuple[float, ...]:
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import TrainingFailedError

    from resnet_ops.orchestration.network import OneNetwork
    from resnet_ops.orchestration.trainer import Trainer, explain
    from resnet_ops.training.worker import Job, work

    config = record.config
    for timeout in ("WORKER_HEALTH_CHECK", "COLLECTIVE"):  # Ray's own are 10 minutes and none
        os.environ[f"RAY_TRAIN_{timeout}_TIMEOUT_S"] = str(config.hang_timeout)
    for left in range(config.max_failures, -1, -1):
        trainer = Trainer(
            work,
            train_loop_config=Job(str(run.path), None, placement.request),
            torch_config=OneNetwork(timeout_s=int(config.hang_timeout) + 30),  # the watchdog knows more, so is first
            run_config=scratch,
            request=placement.request,
            layout=placement.layout,
            max_failures=left,
            recover_s=RECOVER_S if config.wait is None else config.wait,
            tell=functools.partial(tell, run.path),
        )
        try:
            # In a thread: on the main thread Ray would take Ctrl-C for itself and exit with code 1.
            with ThreadPoolExecutor(1) as pool:
                try:
                    return _steps_at(pool.submit(trainer.fit).result())
                except KeyboardInterrupt:
                    trainer.stop()
                    raise
        except TrainingFailedError as error:
            raise explain(error) from error
        except RayActorError as error:  # Ray's controller itself
            run.tell(f"Lost: the controller of the job ({str(error).splitlines()[0][:200]}). Starting another one.")
    raise PausedError("The controller of the job was lost too often.", "See events.jsonl.", exit_code=WORK_FAILED)


def tell(path: Path, what: str) -> None:
    """Write down what befell a run, from whatever process."""
    Run(path).tell(what)


def _steps_at(result: Any) -> tuple[float, ...]:
    outcome: Outcome = result.return_value
    return outcome.steps_at


def _tell_where_it_stands(run: Run, observer: Observer) -> None:
    latest, refused = Checkpoints(run, 1).latest()
    for reason in refused:
        observer.notice(f"Passed over a checkpoint: {reason}")
    begin = "from the beginning"
    if latest is not None:
        begin = f"after epoch {latest.info.epoch}" + (f" and {latest.info.step} steps" if latest.info.step else "")
    observer.notice(f"Going on {begin}.")


def _record_end(run: Run, record: RunRecord, status: Status, reason: str) -> None:
    with contextlib.suppress(OSError, UserError):  # a full disk must not hide why the work ended
        run.write(record.model_copy(update={"status": status, "reason": reason}))


def _last_good(run: Run) -> str:
    try:
        there = saved(run)
    except PausedError:  # why it stopped is said already
        return ""
    return f"The last good checkpoint is {there[0]}." if there else "No checkpoint was saved yet."


def _resume_command(run: Run) -> str:
    where = "" if run.path.parent == Path("runs").absolute() else f" --runs-dir {run.path.parent}"
    return f"resnet-ops train --resume {run.name}{where}"


def _best(run: Run) -> Best | None:
    checkpoint, _ = read_best(run)
    metrics = checkpoint.info.validated
    return Best(epoch=metrics.epoch, val_accuracy=metrics.val_accuracy, checkpoint=checkpoint.path)


def _result(run: Run, record: RunRecord, steps_at: tuple[float, ...], started_at: float) -> TrainResult:
    epochs = run.epochs()
    rates = sorted(epoch.images_per_second for epoch in epochs)
    now = time.time()
    return TrainResult(
        run=run,
        record=record,
        epochs=len(epochs),
        images_per_second=rates[len(rates) // 2] if rates else None,
        time_to_first_step_s=steps_at[0] - started_at if steps_at else None,
        time_after_last_step_s=now - steps_at[-1] if steps_at else None,
        total_s=now - started_at,
    )
