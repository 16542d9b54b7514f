"""Which failures are survived, and what is said of them."""

from typing import Any

from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError, WorkerGroupError

from resnet_ops.errors import PausedError, UserError
from resnet_ops.orchestration.elastic_trainer import (
    PeerLostError,
    RegroupError,
    UnusableNodeError,
    WorkerLossPolicy,
    explain_failure,
)
from resnet_ops.orchestration.ray_internals import (
    FailureDecision,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE
DIED, SILENT = ActorDiedError(), PeerLostError("Connection closed by peer")


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("x", dict(enumerate(failures)))


def decide(
    error: Any, losses: int = 1, left_out: list[str] | None = None
) -> tuple[FailureDecision, list[str], WorkerLossPolicy]:
    told: list[str] = []

    def log_event(what: str, kind: str = "note") -> None:
        told.append(what)
        assert (kind == "loss") == what.startswith("Lost: ")

    policy = WorkerLossPolicy(losses, log_event, ([] if left_out is None else left_out).append)
    return policy.make_decision(error), told, policy


def test_losses_are_survived_and_counted() -> None:
    for error in (group(DIED), group(SILENT, SILENT), group(DIED, SILENT), NCCLHangError("hangs", {})):
        decision, told, policy = decide(error)
        assert decision == RETRY
        assert len(told) == 1
        assert told[0].startswith("Lost: ")
        assert policy.make_decision(error) == RAISE
        ended = explain_failure(error)
        assert isinstance(ended, PausedError)
        assert "--max-failures" in ended.remedy


def test_what_will_happen_again_is_raised_as_it_is() -> None:
    for own in (UserError("diverged"), ZeroDivisionError("a fault of ours")):
        error = group(SILENT, own)
        assert decide(error)[:2] == (RAISE, [])
        assert explain_failure(error) is own


def test_a_machine_that_sees_other_things_is_left_out_uncounted() -> None:
    left_out: list[str] = []
    error = group(UnusableNodeError("node-7", "b does not see /runs/x"), UnusableNodeError("node-7", "likewise"))
    decision, told, policy = decide(error, losses=0, left_out=left_out)
    assert decision == RETRY
    assert told == ["Excluded: b does not see /runs/x"]
    assert left_out == ["node-7"]
    assert policy.left == 0


def test_regrouping_and_room_that_others_took_do_not_count() -> None:
    decision, told, policy = decide(group(RegroupError(), SILENT), losses=0)
    assert decision == RETRY
    assert "More nodes" in told[0]
    assert policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(3))) == RETRY


def test_workers_that_do_not_start_are_lost_and_a_broken_controller_is_not() -> None:
    for failure in (WorkerGroupStartupFailedError("x"), RuntimeError("Gloo connectFullMesh failed"), ActorDiedError()):
        error = ControllerError(failure)
        assert decide(error)[0] == RETRY
        assert decide(error, losses=0)[0] == RAISE
        assert isinstance(explain_failure(error), PausedError)
    broken = ControllerError(KeyError("x"))
    assert decide(broken)[0] == RAISE
    assert explain_failure(broken) is broken.controller_failure
