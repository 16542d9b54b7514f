"""Ray Train's TorchTrainer with a policy of our own for where workers run.

Ray at best spreads workers, and waits for ever for room; here each is pinned to a node that had room a moment ago,
again after each failure. Which failures lead to a restart is decided in `worker_loss`.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from resnet_ops.errors import WORK_FAILED
from resnet_ops.orchestration import cluster_kv
from resnet_ops.orchestration.allocation import RetryTimer
from resnet_ops.orchestration.nodes import Node, read_nodes
from resnet_ops.orchestration.placement import NODE_LABEL, Layout, NoRoomError, Request, explain_refusal, place_workers
from resnet_ops.orchestration.ray_internals import (
    DatasetsCallback,
    NoopDecision,
    PlacementGroupCleanerCallback,
    ResizeDecision,
    RunningState,
    ScalingDecision,
    ScalingPolicy,
    TrainController,
    actor_id,
    draining_nodes,
    get_env_vars_to_propagate,
)
from resnet_ops.orchestration.worker_loss import LogEvent, WorkerLossPolicy

ABORT_S = 5.0


class ElasticTorchTrainer(TorchTrainer):
    """A TorchTrainer whose workers are placed by `layout`, and after a loss where there is room for `request`.

    Args:
        request: Resources that the job requests.
        layout: Placement of its first workers.
        max_failures: Losses to survive.
        recover_s: Seconds to wait for room after a loss.
        log_event: Called in the controller's process for each event that the user should know of.
        run: Key that the controller is recorded under.
        options: Further arguments of TorchTrainer.
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
        **options: Any,
    ) -> None:
        scaling = ScalingConfig(
            num_workers=layout.workers,
            use_gpu=layout.device == "cuda",
            resources_per_worker=layout.resources,
        )
        super().__init__(*args, scaling_config=scaling, **options)
        self.controller: Any = None
        self.run = run
        self.stopped = False
        self.policies = {
            "scaling_policy": PinnedScalingPolicy(scaling, request, recover_s, log_event),
            "failure_policy": WorkerLossPolicy(max_failures, log_event),
        }

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["train_fn_ref"] = TrainFunctionByValue(parts["train_fn_ref"].get())
        driver_node = ray.get_runtime_context().get_node_id()  # as Ray does: the controller runs on the driver's node
        environment = {"env_vars": get_env_vars_to_propagate() | {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}}
        actor = ray.remote(num_cpus=0, label_selector={NODE_LABEL: driver_node}, runtime_env=environment)
        self.controller = actor(TrainController).remote(**parts | self.policies)
        cluster_kv.record_controller(self.run, actor_id(self.controller))  # before it reserves anything
        if self.stopped:
            ray.kill(self.controller)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def stop(self) -> None:
        """End the controller, and with it the workers; `fit`, on another thread, raises RayActorError."""
        self.stopped = True  # in case the controller is being created at this moment
        if self.controller is None:
            return
        with contextlib.suppress(RayError):
            # If it were killed at once, the workers' placement group would stay reserved until this process ends.
            ray.get(self.controller.abort.remote(), timeout=ABORT_S)
        ray.kill(self.controller)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Return Ray's callbacks without two that start actors.

        One actor asks the dashboard every second whether the job lives, though Ray cleans up by itself. The other
        shares out Ray Datasets, of which there are none; each start would wait 1.8 s for it.
        """
        callbacks: list[RayTrainCallback] = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback | DatasetsCallback)]


class TrainFunctionByValue:
    """The function that workers run, sent to each of them as an argument.

    Ray puts it into the object store; workers that replace lost ones may then try to fetch it from the dead node, and
    wait 10 s for it.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def get(self) -> Callable[[], Any]:
        """Return the function, as ObjectRefWrapper does."""
        return self.function


class PinnedScalingPolicy(ScalingPolicy):
    """Pins the workers, at each start, to nodes that are alive and have room."""

    def __init__(self, scaling: ScalingConfig, request: Request, recover_s: float, log_event: LogEvent) -> None:
        super().__init__(scaling)
        self.request, self.timer = request, RetryTimer(recover_s, log_event)
        self.context: Any = None
        # Workers by node id. Ray ends the running ones only after it has asked where to start the next ones.
        self.running_workers: dict[str, int] = {}
        self.starting_workers: dict[str, int] = {}

    def after_controller_start(self, train_run_context: Any) -> None:
        """Keep the context that Ray reads the placement from; an autoscaler was asked before the job started."""
        self.context = train_run_context
        # Workers that wait for a dead one do not leave their process group; Ray would wait 30 s for it.
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "2"

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ARG002
        """Count workers as running only now: the room they were to start in may have been taken by another job."""
        if isinstance(current_state, RunningState):
            self.running_workers = self.starting_workers

    async def before_controller_shutdown(self) -> None:
        """Do nothing: no resources were requested of an autoscaler here."""

    def before_controller_abort(self) -> None:
        """Do nothing, as before a shutdown."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start the workers where there is room, or wait for it.

        Raises:
            NoRoomError: There was none within the time to wait.
        """
        nodes = usable_nodes()
        layout = place_workers(nodes, self.request, self.running_workers)
        if layout is None:
            try:
                self.timer.wait(explain_refusal(nodes, self.request))
            except NoRoomError as refusal:
                raise refusal.copy_with(exit_code=WORK_FAILED) from None
            return NoopDecision()
        self.timer.reset()
        self.running_workers, self.starting_workers = {}, {node.id: workers for node, workers in layout.assignments}
        self.context.scaling_config.label_selector = layout.label_selectors
        return ResizeDecision(num_workers=layout.workers, resources_per_worker=layout.resources)

    def make_decision_for_running_worker_group(
        self,
        worker_group_state: Any,  # noqa: ARG002
        worker_group_status: Any,  # noqa: ARG002
    ) -> NoopDecision:
        """Leave it running; to use more nodes, the workers stop by themselves, at a checkpoint."""
        return NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        return self.scaling_config.max_workers


def usable_nodes() -> list[Node]:
    """Return the nodes that respond, are not about to leave, and that this job has not excluded."""
    excluded = cluster_kv.excluded_nodes() | draining_nodes()
    return [node for node in read_nodes(only_responsive=True) if node.id not in excluded]
