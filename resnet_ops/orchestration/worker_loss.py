"""Failures of workers: which of them are losses that training recovers from, and how they are described.

What is done about them is decided in `elastic_trainer`.
"""

from collections.abc import Mapping

from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.orchestration.ray_internals import (
    CollectiveTimeoutError,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

# In torch's messages when another worker is gone or silent; gloo and NCCL have no exceptions of their own for it.
PEER_WORDS = ("gloo", "Gloo", "NCCL", "Connection", "connection", "timed out", "Timed out", "Broken pipe")
TOO_MANY = "This exceeds --max-failures."


class PeerLostError(Exception):
    """A worker could not communicate with the others: one of them is gone or hangs, or the network failed."""


DIED = (RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)


class UnusableNodeError(Exception):
    """A node does not see the run's folder, or sees other images; `node` is its id."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(node, reason)
        self.node, self.reason = node, reason

    def __str__(self) -> str:
        return self.reason


class RegroupError(Exception):
    """Every worker has stopped at a checkpoint, because more nodes are available now."""


LOST = (*DIED, CollectiveTimeoutError, PeerLostError, UnusableNodeError)


def is_peer_error(error: BaseException) -> bool:
    """Return whether a worker's error says that another worker is gone or silent."""
    return any(word in str(error) for word in PEER_WORDS)


def failed_to_start(error: BaseException) -> bool:
    """Return whether workers were lost while they started, or could not reach each other."""
    if isinstance(error, WorkerGroupStartupFailedError | RayActorError):
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
    """Return the line that gives the reason; Ray's account of a worker's death is a page long."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    reasons = [line for line in lines if "because" in line or "has died" in line or "hang" in line]
    line = (reasons or lines or [type(failure).__name__])[0].removeprefix("The actor is dead because ")
    return line.split(" Some common causes")[0][:200].rstrip(". ")
