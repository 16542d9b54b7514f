"""Runs a job's workers to their end: in this process, or on Ray, surviving the loss of some of them."""

import contextlib
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from resnet_ops.orchestration.connect import enable_nccl_hang_detector, import_ray

import_ray()  # with its settings, before anything else imports it

from ray.exceptions import RayActorError  # noqa: E402
from ray.train import RunConfig, ScalingConfig  # noqa: E402
from ray.train.torch import TorchTrainer  # noqa: E402
from ray.train.v2.api.exceptions import TrainingFailedError  # noqa: E402

from resnet_ops import files  # noqa: E402
from resnet_ops.data.sources import Source  # noqa: E402
from resnet_ops.errors import WORK_FAILED, PausedError, UserError  # noqa: E402
from resnet_ops.orchestration import cluster_kv, worker_stop  # noqa: E402
from resnet_ops.orchestration.allocation import RECOVER_S, Placement  # noqa: E402
from resnet_ops.orchestration.elastic_trainer import ElasticTorchTrainer  # noqa: E402
from resnet_ops.orchestration.head_loss import wait_for_head  # noqa: E402
from resnet_ops.orchestration.network import SocketInterfaceConfig  # noqa: E402
from resnet_ops.orchestration.worker_loss import explain_failure  # noqa: E402
from resnet_ops.run_records import RunRecord  # noqa: E402
from resnet_ops.runs import Run  # noqa: E402
from resnet_ops.stop_request import StoppedError, StopRequest  # noqa: E402
from resnet_ops.training.worker import WorkerResult, WorkerTask, run_worker  # noqa: E402

NCCL_GRACE_S = 30  # on top of --hang-timeout: the watchdog knows more about a hang, so it is first


def launch_workers(
    run: Run,
    record: RunRecord,
    source: Source,
    placement: Placement,
    stop: StopRequest,
) -> WorkerResult:
    """Train a run on each of the job's workers, and return what rank 0 returns.

    Workers in other processes open the images themselves, as their nodes see them.

    Raises:
        StoppedError: They were asked to stop, here or on their nodes, and have saved all, unless they were asked twice.
    """
    result = _launch(run, record, source, placement, stop)
    if result.stop is not None:
        raise StoppedError(result.stop)
    return result


def _launch(run: Run, record: RunRecord, source: Source, placement: Placement, stop: StopRequest) -> WorkerResult:
    # Ray keeps nothing there that is needed again, so it need not be shared.
    scratch = RunConfig(name=f"at-{time.time_ns()}", **files.for_arrow(run.path / "ray"))
    if placement.in_process:
        trainer = TorchTrainer(
            run_worker,  # type: ignore[arg-type]  # Ray's hint forgets that a value may be returned
            train_loop_config=WorkerTask(str(run.path), int(placement.layout.cpus), source=source, stop=stop),  # type: ignore[arg-type]
            scaling_config=ScalingConfig(num_workers=0, use_gpu=placement.layout.device == "cuda"),
            run_config=scratch,
        )
        return _value(trainer.fit())
    try:
        with placement.start_ray(stop):
            return _launch_on_ray(run, record, placement, scratch, stop)
    finally:
        with contextlib.suppress(OSError, UserError):
            files.remove_tree(run.path / "ray")


def _launch_on_ray(
    run: Run, record: RunRecord, placement: Placement, scratch: RunConfig, stop: StopRequest
) -> WorkerResult:
    config = record.config
    if placement.layout.device == "cuda":
        enable_nccl_hang_detector(config.hang_timeout)
    ask = functools.partial(worker_stop.ask_workers, str(run.path))
    first_event = len(run.events())
    while (left := config.max_failures - sum(e.kind == "loss" for e in run.events()[first_event:])) >= 0:
        stop.check()
        cluster_kv.release_resources(str(run.path))  # still held where the controller was lost
        worker_stop.withdraw(str(run.path))
        trainer = ElasticTorchTrainer(
            run_worker,
            train_loop_config=WorkerTask(str(run.path), None, placement.request, fence=run.fence),
            torch_config=SocketInterfaceConfig(
                timeout_s=int(config.hang_timeout) + NCCL_GRACE_S, log_event=Run(run.path).log_event
            ),
            run_config=scratch,
            request=placement.request,
            layout=placement.layout,
            max_failures=left,
            recover_s=RECOVER_S if config.wait is None else config.wait,
            log_event=Run(run.path).log_event,  # of a run without this process's lock, for it goes to another one
            run=str(run.path),
        )
        try:
            # On the main thread Ray would take Ctrl-C for itself and exit with code 1.
            with ThreadPoolExecutor(1) as pool:
                try:
                    return _value(worker_stop.wait_for_workers(pool.submit(trainer.fit), stop, ask))
                except KeyboardInterrupt:
                    trainer.stop()
                    raise
        except TrainingFailedError as error:
            raise explain_failure(error) from error
        except RayActorError as error:  # Ray's controller itself
            wait_for_head()  # with which it may have been lost
            reason = str(error).splitlines()[0][:200]
            run.log_event(f"Lost: the job's controller ({reason}). Starting another one.", "loss")
    raise PausedError("The job's controller was lost too often.", "See events.jsonl.", exit_code=WORK_FAILED)


def _value(result: Any) -> WorkerResult:
    """Return what rank 0 returned, of Ray Train's result."""
    value: WorkerResult = result.return_value
    return value
