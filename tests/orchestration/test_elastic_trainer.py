"""Failures that are survived, and how they are reported."""

import pickle
from typing import Any

from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import ControllerError, NCCLHangError, WorkerGroupError

from resnet_ops.errors import PausedError, UserError
from resnet_ops.orchestration.ray_internals import (
    FailureDecision,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from resnet_ops.orchestration.worker_loss import (
    LinkError,
    PeerLostError,
    RegroupError,
    UnusableNodeError,
    WorkerLossPolicy,
    explain_failure,
)

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE
DIED, SILENT = ActorDiedError(), PeerLostError("Connection closed by peer")


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("x", dict(enumerate(failures)))


def decide(
    error: Any, losses: int = 1, excluded: list[str] | None = None
) -> tuple[FailureDecision, list[str], WorkerLossPolicy]:
    messages: list[str] = []

    def log_event(message: str, kind: str = "note") -> None:
        messages.append(message)
        assert (kind == "loss") == message.startswith("Lost: ")

    policy = WorkerLossPolicy(losses, log_event, ([] if excluded is None else excluded).append)
    return policy.make_decision(error), messages, policy


def test_losses_are_survived_and_counted() -> None:
    for error in (group(DIED), group(SILENT, SILENT), group(DIED, SILENT), NCCLHangError("hangs", {})):
        decision, messages, policy = decide(error)
        assert decision == RETRY
        assert len(messages) == 1
        assert messages[0].startswith("Lost: ")
        assert policy.make_decision(error) == RAISE
        ended = explain_failure(error)
        assert isinstance(ended, PausedError)
        assert "--max-failures" in ended.remedy


def bad_link(*links: tuple[str, str]) -> ControllerError:
    failure = LinkError("a cannot reach b at 10.0.0.2 (eth0): no answer within 5 s.", "Open all TCP ports.")
    failure.links = frozenset(links)
    return ControllerError(failure)


def test_a_link_that_fails_is_tried_once_more_and_then_named() -> None:
    decision, messages, policy = decide(bad_link(("a", "b")), losses=9)
    assert (decision, len(messages)) == (RETRY, 1)
    assert messages[0].startswith("Lost: a cannot reach b at 10.0.0.2 (eth0): no answer within 5 s. Resuming")
    assert policy.make_decision(bad_link(("c", "b"))) == RETRY  # another one
    again = bad_link(("c", "b"), ("b", "c"))
    assert policy.make_decision(again) == RAISE
    told = explain_failure(pickle.loads(pickle.dumps(again)))
    assert isinstance(told, PausedError)
    assert str(told) == "a cannot reach b at 10.0.0.2 (eth0): no answer within 5 s. Open all TCP ports."


def test_what_will_happen_again_is_raised_as_it_is() -> None:
    for own in (UserError("diverged"), ZeroDivisionError("a fault of ours")):
        error = group(SILENT, own)
        assert decide(error)[:2] == (RAISE, [])
        assert explain_failure(error) is own


def test_a_machine_that_sees_other_things_is_left_out_uncounted() -> None:
    excluded: list[str] = []
    error = group(UnusableNodeError("node-7", "b does not see /runs/x"), UnusableNodeError("node-7", "likewise"))
    decision, messages, policy = decide(error, losses=0, excluded=excluded)
    assert decision == RETRY
    assert messages == ["Excluded: b does not see /runs/x"]
    assert excluded == ["node-7"]
    assert policy.left == 0


def test_regrouping_and_room_that_others_took_do_not_count() -> None:
    decision, messages, policy = decide(group(RegroupError("More nodes."), SILENT), losses=0)
    assert decision == RETRY
    assert "More nodes" in messages[0]
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
