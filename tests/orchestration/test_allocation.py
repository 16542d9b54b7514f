"""Room that is not there yet: how long it is waited for, and what is said meanwhile."""

from collections.abc import Iterator

import pytest

from resnet_ops.config import ClusterConfig
from resnet_ops.orchestration.allocation import wait_for_room
from resnet_ops.orchestration.placement import Node, NoRoomError, Request, explain_refusal

TWO = Request("cpu", 2, 2)


def machines(count: int, free: float = 4) -> list[Node]:
    return [Node(str(i), f"node{i}", 4, 0, free, 0) for i in range(count)]


class Looks:
    """What is found, look by look: machines that are too few or busy, then room."""

    def __init__(self, *found: list[Node]) -> None:
        self.found: Iterator[list[Node]] = iter(found)

    def __call__(self) -> str:
        for nodes in self.found:
            raise explain_refusal(nodes, TWO)
        return "room"


def test_what_is_missing_is_said_when_it_changes() -> None:
    told: list[str] = []
    looks = Looks(machines(0), machines(0), machines(1), machines(2, free=0))
    assert wait_for_room(looks, ClusterConfig.of(wait=30), told.append, autoscales=False) == "room"
    assert told == [
        "0 of 2 nodes up; waiting up to 30 s.",
        "1 of 2 nodes up; waiting up to 30 s.",
        "2 of 2 nodes up, some of them busy; waiting up to 30 s.",
    ]


def test_missing_machines_are_waited_for_where_something_brings_them() -> None:
    told: list[str] = []
    with pytest.raises(NoRoomError, match="needs 2 nodes"):
        wait_for_room(Looks(machines(1)), ClusterConfig(), told.append, autoscales=False)
    assert told == []
    assert wait_for_room(Looks(machines(1)), ClusterConfig(), told.append, autoscales=True) == "room"
    assert told == ["1 of 2 nodes up; waiting up to 600 s."]


def test_busy_machines_are_given_a_moment_in_any_case() -> None:
    told: list[str] = []
    looks = Looks(machines(2, free=0))
    assert wait_for_room(looks, ClusterConfig.of(wait=0), told.append, autoscales=False) == "room"
    assert told == ["2 of 2 nodes up, some of them busy; waiting up to 10 s."]


def test_time_that_is_over_is_over() -> None:
    with pytest.raises(NoRoomError, match="needs 2 nodes"):
        wait_for_room(Looks(*[machines(1)] * 99), ClusterConfig.of(wait=0.5), lambda _: None, autoscales=True)
