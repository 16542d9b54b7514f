"""Runs a job's workers to their end: in this process, or on Ray, through the loss of some of them."""

import contextlib
import functools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_ops import files
from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.orchestration.allocation import RECOVER_S, Placement
from resnet_ops.orchestration.connect import enable_nccl_hang_detector, import_ray
from resnet_ops.runs import EventKind, Run, RunRecord

if TYPE_CHECKING:
    from resnet_ops.data.sources import Source
    from resnet_ops.training.worker import Outcome

LOOK_INTERVAL_S = 0.2


def fit(
    run: Run, record: RunRecord, source: "Source", placement: Placement, halt: threading.Event | None = None
) -> "Outcome":
    """Run the workers to the end. Those in other processes open the images themselves, as their machines see them.

    Raises:
        KeyboardInterrupt: Somebody stopped it by Ctrl-C, or `halt` was set.
    """
    import_ray()
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from resnet_ops.training.worker import WorkerTask, run_worker

    # Ray keeps nothing there that is needed again, so it need not be shared.
    scratch = RunConfig(name=f"at-{time.time_ns()}", **files.for_arrow(run.path / "ray"))
    if placement.in_process:
        job = WorkerTask(str(run.path), int(placement.layout.cpus), source=source)
        trainer = TorchTrainer(
            run_worker,  # type: ignore[arg-type]  # Ray's hint forgets that a value may be returned
            train_loop_config=job,  # type: ignore[arg-type]  # any object is handed over as it is
            scaling_config=ScalingConfig(num_workers=0, use_gpu=placement.layout.device == "cuda"),
            run_config=scratch,
        )
        # Ray Data's tasks need it.
        with placement.start_ray() if record.config.stream == "on" else contextlib.nullcontext():
            return _outcome(trainer.fit())
    try:
        with placement.start_ray():
            return _fit_on_ray(run, record, placement, scratch, halt or threading.Event())
    finally:
        with contextlib.suppress(OSError, UserError):
            files.remove_tree(run.path / "ray")


def _fit_on_ray(run: Run, record: RunRecord, placement: Placement, scratch: Any, halt: threading.Event) -> "Outcome":
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import TrainingFailedError

    from resnet_ops.orchestration import cluster_kv
    from resnet_ops.orchestration.elastic_trainer import ElasticTorchTrainer
    from resnet_ops.orchestration.network import GlooInterfaceConfig
    from resnet_ops.orchestration.worker_loss import explain_failure
    from resnet_ops.training.worker import WorkerTask, run_worker

    config = record.config
    if placement.layout.device == "cuda":
        enable_nccl_hang_detector(config.hang_timeout)
    begun = len(run.events())
    while (left := config.max_failures - sum(e.kind == "loss" for e in run.events()[begun:])) >= 0:
        cluster_kv.release_placement_group(str(run.path))  # which one whose controller was lost still has
        trainer = ElasticTorchTrainer(
            run_worker,
            train_loop_config=WorkerTask(str(run.path), None, placement.request),
            torch_config=GlooInterfaceConfig(
                timeout_s=int(config.hang_timeout) + 30
            ),  # the watchdog knows more, so is first
            run_config=scratch,
            request=placement.request,
            layout=placement.layout,
            max_failures=left,
            recover_s=RECOVER_S if config.wait is None else config.wait,
            log_event=functools.partial(log_event, run.path),
            run=str(run.path),
        )
        try:
            # In a thread: on the main thread Ray would take Ctrl-C for itself and exit with code 1.
            with ThreadPoolExecutor(1) as pool:
                try:
                    return _outcome(_wait(pool.submit(trainer.fit), halt))
                except KeyboardInterrupt:
                    trainer.stop()
                    raise
        except TrainingFailedError as error:
            raise explain_failure(error) from error
        except RayActorError as error:  # Ray's controller itself
            reason = str(error).splitlines()[0][:200]
            run.log_event(f"Lost: the job's controller ({reason}). Starting another one.", "loss")
    raise PausedError("The job's controller was lost too often.", "See events.jsonl.", exit_code=WORK_FAILED)


def _wait(fitting: Future[Any], halt: threading.Event) -> Any:
    while not halt.is_set():
        with contextlib.suppress(TimeoutError):
            return fitting.result(timeout=LOOK_INTERVAL_S)
        if fitting.done():  # with a TimeoutError of its own
            return fitting.result()
    raise KeyboardInterrupt


def log_event(path: Path, what: str, kind: EventKind = "note") -> None:
    """Write down what befell a run, from whatever process."""
    Run(path).log_event(what, kind)


def _outcome(result: Any) -> "Outcome":
    outcome: Outcome = result.return_value
    return outcome
