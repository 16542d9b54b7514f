"""Errors that are copied with another text, and sent between processes."""

import pickle

import pytest

from resnet_ops.errors import WORK_FAILED, PausedError, UserError, did_you_mean
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.placement import NoRoomError
from resnet_ops.training.checkpoint import PickledFileError

NODES = (Node("a", "a", 2, 0, 1, 0), Node("b", "b", 2, 0, 2, 0))


@pytest.mark.parametrize(
    "error",
    [
        UserError("It failed.", "Try again."),
        PausedError("The disk is full.", "Free some space.", WORK_FAILED),
        PickledFileError("It is a pickle."),
        NoRoomError("--nodes 3 needs 3 machines.", "Use --nodes 2.", NODES, WORK_FAILED),
    ],
)
def test_an_error_with_another_text_is_the_same_error(error: UserError) -> None:
    error.details["name"] = "x"
    cause, remedy, exit_code, details = error.cause, error.remedy, error.exit_code, dict(error.details)
    again = error.copy_with(remedy="Then go on.")
    for copied in (again, pickle.loads(pickle.dumps(again))):
        assert type(copied) is type(error)
        assert (copied.cause, copied.remedy, copied.exit_code, copied.details) == (
            cause,
            "Then go on.",
            exit_code,
            details,
        )
        assert getattr(copied, "nodes", None) == getattr(error, "nodes", None)
        assert str(copied) == f"{cause} Then go on."
    again.details["job_id"] = "y"
    assert (error.cause, error.remedy, error.details) == (cause, remedy, details)
    other = pickle.loads(pickle.dumps(error.copy_with(cause="Why.", exit_code=WORK_FAILED)))
    assert (other.cause, other.remedy, other.exit_code) == ("Why.", remedy, WORK_FAILED)


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("mien", ["gentle", "mine"], "mine"),
        ("evalute", ["evaluate", "export"], "evaluate"),
        ("imagenett", ["gentle", "imagenet"], "imagenet"),
        ("dgo", ["cat", "dog"], "dog"),
        ("nope", ["mine"], None),
        ("imagenett", ["gentle"], None),
    ],
)
def test_only_what_is_similar_is_suggested(typed: str, known: list[str], meant: str | None) -> None:
    assert did_you_mean(typed, known) == (f"Did you mean {meant}?" if meant else "")
