"""Losses of workers: which failures they are, how many are survived, and how they are described.

Ray restarts workers after any exception, even one that will recur; here only the loss of a worker or a node leads to a
restart. Where the workers then run is decided in `elastic_trainer`.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError

from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.orchestration import cluster_kv
from resnet_ops.orchestration.ray_internals import (
    CollectiveTimeoutError,
    FailureDecision,
    FailurePolicy,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

# In torch's messages when another worker is gone or silent; gloo and NCCL have no exceptions of their own for it.
PEER_WORDS = ("gloo", "Gloo", "NCCL", "Connection", "connection", "timed out", "Timed out", "Broken pipe")
TOO_MANY = "This exceeds --max-failures."


class LogEvent(Protocol):
    """Logs, in the controller's process, an event that the user should know of."""

    def __call__(self, message: str, kind: Literal["note", "loss", "detail"] = "note", /) -> None:
        """Log an event; losses are counted, details are kept but not shown."""


class PeerLostError(Exception):
    """A worker could not communicate with the others: one of them is gone or hangs, or the network failed."""


class LinkError(PausedError):
    """Messages between machines do not arrive; `links` are the names of each two."""

    def __init__(self, cause: str, remedy: str, exit_code: int = WORK_FAILED) -> None:
        super().__init__(cause, remedy, exit_code)
        self.links: frozenset[tuple[str, str]] = frozenset()


DIED = (RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)


class UnusableNodeError(Exception):
    """A node does not see the run's folder, or sees other images; `node` is its id."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(node, reason)
        self.node, self.reason = node, reason

    def __str__(self) -> str:
        return self.reason


class RegroupError(Exception):
    """Every worker has stopped at a checkpoint, to go on on other nodes; its text tells users why."""


LOST = (*DIED, CollectiveTimeoutError, PeerLostError, UnusableNodeError)


class WorkerLossPolicy(FailurePolicy):
    """Restarts after the loss of workers, at most `max_failures` times, and after no other failure."""

    def __init__(
        self, max_failures: int, log_event: LogEvent, exclude_node: Callable[[str], None] = cluster_kv.exclude_node
    ) -> None:
        super().__init__(FailureConfig(max_failures=max_failures))
        self.left, self.log_event, self.exclude_node = max_failures, log_event, exclude_node
        self.bad_links: frozenset[tuple[str, str]] = frozenset()

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return RETRY for a loss that may be survived, otherwise RAISE."""
        if isinstance(training_failed_error, PreemptionError):
            return FailureDecision.RETRY
        if isinstance(training_failed_error, ControllerError):
            if isinstance(training_failed_error.controller_failure, WorkerGroupStartupTimeoutError):
                return FailureDecision.RETRY  # the room was taken meanwhile: place the workers again
            failure = training_failed_error.controller_failure
            if not failed_to_start(failure):
                return FailureDecision.RAISE
            lost = "workers that had just been started"
            if isinstance(failure, LinkError):
                if self.bad_links & failure.links:  # again: it is the network, not a machine that is about to be lost
                    return FailureDecision.RAISE
                lost, self.bad_links = failure.cause.rstrip("."), failure.links
        else:
            assert isinstance(training_failed_error, WorkerGroupError)
            failures = training_failed_error.worker_failures
            if regroup := [failure for failure in failures.values() if isinstance(failure, RegroupError)]:
                self.log_event(str(regroup[0]))
                return FailureDecision.RETRY
            if not all(isinstance(failure, LOST) for failure in failures.values()):
                return FailureDecision.RAISE
            if unusable := [failure for failure in failures.values() if isinstance(failure, UnusableNodeError)]:
                for node in {failure.node for failure in unusable}:
                    self.exclude_node(node)
                self.log_event(f"Excluded: {unusable[0].reason}")
                return FailureDecision.RETRY
            lost = describe_losses(failures)
        self.left -= 1
        if self.left < 0:
            return FailureDecision.RAISE
        self.log_event(f"Lost: {lost}. Resuming from the last checkpoint ({self.left} more failures allowed).", "loss")
        return FailureDecision.RETRY


def is_peer_error(error: BaseException) -> bool:
    """Return whether a worker's error says that another worker is gone or silent."""
    return any(word in str(error) for word in PEER_WORDS)


def failed_to_start(error: BaseException) -> bool:
    """Return whether workers were lost while they started, or could not reach each other."""
    if isinstance(error, WorkerGroupStartupFailedError | RayActorError | LinkError):
        return True
    return isinstance(error, RayTaskError | RuntimeError) and is_peer_error(error)


def describe_losses(failures: Mapping[int, BaseException]) -> str:
    """Describe in one line which workers were lost and why: those that died, else the peer that others miss."""
    if not failures:  # NCCL's hang detector names none
        return "workers waiting for each other"
    died = {rank: failure for rank, failure in failures.items() if isinstance(failure, DIED)}
    if died:
        return "; ".join(f"worker {rank} ({_reason(failure)})" for rank, failure in sorted(died.items())[:4])
    ranks = ", ".join(map(str, sorted(failures)))
    return f"a peer of worker {ranks} ({_reason(failures[min(failures)])})"


def explain_failure(error: TrainingFailedError) -> BaseException:
    """Return the error to report to the user: a UserError if there is one, else that of the first worker."""
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if isinstance(failure, LinkError) or not failed_to_start(failure):
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
    """Return the line that gives the reason; Ray's account of a worker's death is a page long."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    reasons = [line for line in lines if "because" in line or "has died" in line or "hang" in line]
    line = (reasons or lines or [type(failure).__name__])[0].removeprefix("The actor is dead because ")
    return line.split(" Some common causes")[0][:200].rstrip(". ")
