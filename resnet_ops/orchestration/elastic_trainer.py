"""Ray Train, with our own word on where workers go and on which failures they survive.

Two of its parts are replaced. Where workers go: Ray spreads them at best, and waits for ever for
room; here each is pinned to a machine that was just seen to have room, anew after each failure.
Which failures they survive: Ray begins again after any exception, also after one that will come
again; here only after the loss of a worker or of a machine.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.orchestration import cluster_kv
from resnet_ops.orchestration.allocation import RetryTimer
from resnet_ops.orchestration.placement import (
    NODE_LABEL,
    Layout,
    Node,
    NoRoomError,
    Request,
    explain_refusal,
    place_workers,
    read_nodes,
)
from resnet_ops.orchestration.ray_internals import (
    CollectiveTimeoutError,
    DatasetsCallback,
    FailureDecision,
    FailurePolicy,
    NoopDecision,
    PlacementGroupCleanerCallback,
    ResizeDecision,
    RunningState,
    ScalingDecision,
    ScalingPolicy,
    TrainController,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
    get_env_vars_to_propagate,
)

ABORT_S = 5.0
# What torch says when another worker is gone or silent; gloo and NCCL have no exception of their own for it.
PEER_WORDS = ("gloo", "Gloo", "NCCL", "Connection", "connection", "timed out", "Timed out", "Broken pipe")
TOO_MANY = "This exceeds --max-failures."


class LogEvent(Protocol):
    """Told, in the controller's process, of what a user should know."""

    def __call__(self, what: str, kind: Literal["note", "loss"] = "note", /) -> None:
        """Tell of something; losses are counted."""


class PeerLostError(Exception):
    """A worker could not talk to the others: one of them is gone, hangs, or the network is cut."""


DEAD = (RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)


class UnusableNodeError(Exception):
    """A machine does not see the run's folder, or sees other images; `node` is its id."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node, self.why = node, why

    def __str__(self) -> str:
        return self.why


class RegroupError(Exception):
    """Every worker has stopped at a checkpoint, for more machines are there now."""


LOST = (*DEAD, CollectiveTimeoutError, PeerLostError, UnusableNodeError)


class ElasticTorchTrainer(TorchTrainer):
    """A TorchTrainer whose workers go where `layout` says, and later where there is room for `request`.

    Args:
        request: What the job asks of the cluster.
        layout: Where its workers go first.
        max_failures: Losses to survive.
        recover_s: How long to wait for room after a loss, in seconds.
        log_event: Told, in the controller's process, of what a user should know.
        run: What the room that the workers take is remembered under.
        rest: What TorchTrainer takes.
    """

    def __init__(
        self,
        *args: Any,
        request: Request,
        layout: Layout,
        max_failures: int,
        recover_s: float,
        log_event: LogEvent,
        run: str,
        **rest: Any,
    ) -> None:
        scaling = ScalingConfig(
            num_workers=layout.workers,
            use_gpu=layout.device == "cuda",
            resources_per_worker=layout.resources,
        )
        super().__init__(*args, scaling_config=scaling, **rest)
        self.controller: Any = None
        self.run = run
        self.stopped = False
        self.policies = {
            "scaling_policy": PinnedScalingPolicy(scaling, request, recover_s, log_event),
            "failure_policy": WorkerLossPolicy(max_failures, log_event),
        }

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["train_fn_ref"] = TrainFunctionByValue(parts["train_fn_ref"].get())
        here = ray.get_runtime_context().get_node_id()  # Ray's way: the controller beside the driver
        environment = {"env_vars": get_env_vars_to_propagate() | {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}}
        actor = ray.remote(num_cpus=0, label_selector={NODE_LABEL: here}, runtime_env=environment)
        self.controller = actor(TrainController).remote(**parts | self.policies)
        if self.stopped:
            ray.kill(self.controller)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def stop(self) -> None:
        """End the controller, and with it the workers; `fit`, on another thread, raises RayActorError."""
        self.stopped = True  # for where it is being made at this moment
        if self.controller is None:
            return
        with contextlib.suppress(RayError):
            # Killed at once it would leave the workers' room reserved, until this whole process ends.
            ray.get(self.controller.abort.remote(), timeout=ABORT_S)
        ray.kill(self.controller)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Leave out two actors: one asks the dashboard each second whether the job lives, and Ray cleans up by itself.

        The other shares out Ray Data sets, of which there are none; each start would wait 1.8 s for it.
        """
        made: list[RayTrainCallback] = super()._create_default_callbacks()
        kept = [c for c in made if not isinstance(c, PlacementGroupCleanerCallback | DatasetsCallback)]
        return [*kept, cluster_kv.PlacementGroupRecorder(self.run)]


class TrainFunctionByValue:
    """What workers run, sent in the call to each of them.

    Ray puts it into the object store, from where workers that replace lost ones may be told to
    fetch it from the dead machine, for which they wait 10 s.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def get(self) -> Callable[[], Any]:
        """The function, as ObjectRefWrapper gives it."""
        return self.function


class PinnedScalingPolicy(ScalingPolicy):
    """Lays the workers out on the machines that are alive and free at each start."""

    def __init__(self, scaling: ScalingConfig, request: Request, recover_s: float, log_event: LogEvent) -> None:
        super().__init__(scaling)
        self.request, self.timer = request, RetryTimer(recover_s, log_event)
        self.context: Any = None
        self.ours: dict[str, int] = {}  # workers on machines; Ray ends them only after it asked where the next ones go
        self.next: dict[str, int] = {}

    def after_controller_start(self, train_run_context: Any) -> None:
        """Keep what the placement is read from; an autoscaler was asked before the job began."""
        self.context = train_run_context
        # Workers that wait for a dead one do not leave their process group by themselves; Ray waits 30 s for it.
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "2"

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ARG002
        """Count the workers' room as ours once they run: room that was only chosen may have gone to somebody else."""
        if isinstance(current_state, RunningState):
            self.ours = self.next

    async def before_controller_shutdown(self) -> None:
        """Nothing was requested, so nothing is taken back."""

    def before_controller_abort(self) -> None:
        """Likewise."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start the workers where there is room, or wait for it a while.

        Raises:
            NoRoomError: There was none for too long.
        """
        nodes = usable_nodes()
        layout = place_workers(nodes, self.request, self.ours)
        if layout is None:
            try:
                self.timer.wait(explain_refusal(nodes, self.request))
            except NoRoomError as refusal:
                raise refusal.copy_with(exit_code=WORK_FAILED) from None
            return NoopDecision()
        self.timer.renew()
        self.ours, self.next = {}, {node.id: workers for node, workers in layout.assignments}
        self.context.scaling_config.label_selector = layout.label_selectors
        return ResizeDecision(num_workers=layout.workers, resources_per_worker=layout.resources)

    def make_decision_for_running_worker_group(
        self,
        worker_group_state: Any,  # noqa: ARG002
        worker_group_status: Any,  # noqa: ARG002
    ) -> NoopDecision:
        """Leave it running; workers themselves stop to regroup, at a checkpoint."""
        return NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        return self.scaling_config.max_workers


class WorkerLossPolicy(FailurePolicy):
    """Begins again after the loss of workers, `max_failures` times, and after nothing else."""

    def __init__(
        self, max_failures: int, log_event: LogEvent, exclude_node: Callable[[str], None] = cluster_kv.exclude_node
    ) -> None:
        super().__init__(FailureConfig(max_failures=max_failures))
        self.left, self.log_event, self.exclude_node = max_failures, log_event, exclude_node

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE."""
        if isinstance(training_failed_error, PreemptionError):
            return FailureDecision.RETRY
        if isinstance(training_failed_error, ControllerError):
            if isinstance(training_failed_error.controller_failure, WorkerGroupStartupTimeoutError):
                return FailureDecision.RETRY  # the room has gone meanwhile: look again
            if not failed_to_start(training_failed_error.controller_failure):
                return FailureDecision.RAISE
            lost = "workers that had just been started"
        else:
            assert isinstance(training_failed_error, WorkerGroupError)
            failures = training_failed_error.worker_failures
            if any(isinstance(failure, RegroupError) for failure in failures.values()):
                self.log_event("More nodes are available: resuming on them.")
                return FailureDecision.RETRY
            if not all(isinstance(failure, LOST) for failure in failures.values()):
                return FailureDecision.RAISE
            if found := [failure for failure in failures.values() if isinstance(failure, UnusableNodeError)]:
                for node in {failure.node for failure in found}:
                    self.exclude_node(node)
                self.log_event(f"Excluded: {found[0].why}")
                return FailureDecision.RETRY
            lost = describe_losses(failures)
        self.left -= 1
        if self.left < 0:
            return FailureDecision.RAISE
        self.log_event(f"Lost: {lost}. Resuming from the last checkpoint ({self.left} more failures allowed).", "loss")
        return FailureDecision.RETRY


def usable_nodes() -> list[Node]:
    """The machines that answer, but for those that this job has left out."""
    excluded = cluster_kv.excluded_nodes()
    return [node for node in read_nodes(only_responsive=True) if node.id not in excluded]


def is_peer_error(error: BaseException) -> bool:
    """Whether a worker's error says that another one is gone or silent."""
    return any(word in str(error) for word in PEER_WORDS)


def failed_to_start(error: BaseException) -> bool:
    """Whether workers were lost while they were started, or could not reach each other."""
    if isinstance(error, WorkerGroupStartupFailedError | RayActorError):
        return True
    return isinstance(error, RayTaskError | RuntimeError) and is_peer_error(error)


def describe_losses(failures: Mapping[int, BaseException]) -> str:
    """Which workers were lost and why, in one line: those that died, or else one that the others miss."""
    if not failures:  # NCCL's own word, which names nobody
        return "workers waiting for each other"
    died = {rank: failure for rank, failure in failures.items() if isinstance(failure, DEAD)}
    if died:
        return "; ".join(f"worker {rank} ({_reason(failure)})" for rank, failure in sorted(died.items())[:4])
    ranks = ", ".join(map(str, sorted(failures)))
    return f"a peer of worker {ranks} ({_reason(failures[min(failures)])})"


def explain_failure(error: TrainingFailedError) -> BaseException:
    """What a user should hear of a failure: our own word if there is one, else the worker's end."""
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if not failed_to_start(failure):
            return failure
        reason = f"workers that had just been started ({str(failure).splitlines()[-1].strip()[:200]})"
        return PausedError(f"Lost: {reason}.", TOO_MANY, exit_code=WORK_FAILED)
    assert isinstance(error, WorkerGroupError)
    failures = error.worker_failures
    for failure in failures.values():
        if isinstance(failure, UserError):
            return failure
    if all(isinstance(failure, LOST) for failure in failures.values()):
        return PausedError(f"Lost: {describe_losses(failures)}.", TOO_MANY, exit_code=WORK_FAILED)
    own = {rank: f for rank, f in failures.items() if not isinstance(f, LOST)}
    return own[min(own)]


def _reason(failure: BaseException) -> str:
    """Ray's account of a death is a page; one line of it says why."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    why = [line for line in lines if "because" in line or "has died" in line or "hang" in line]
    line = (why or lines or [type(failure).__name__])[0].removeprefix("The actor is dead because ")
    return line.split(" Some common causes")[0][:200].rstrip(". ")
