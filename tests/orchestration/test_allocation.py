"""Waiting for room on a cluster: how long, and what is reported meanwhile."""

from collections.abc import Iterator

import pytest

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.orchestration.allocation import wait_for_room
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.placement import NoRoomError, Request, explain_refusal

TWO = Request("cpu", 2, 2)


def some_nodes(count: int, free: float = 4) -> list[Node]:
    return [Node(str(i), f"node{i}", 4, 0, free, 0) for i in range(count)]


class Attempts:
    """Attempts to allocate room: too few nodes or busy ones, attempt by attempt, then room."""

    def __init__(self, *clusters: list[Node]) -> None:
        self.clusters: Iterator[list[Node]] = iter(clusters)

    def __call__(self) -> str:
        for nodes in self.clusters:
            raise explain_refusal(nodes, TWO)
        return "room"


def test_what_is_missing_is_said_when_it_changes() -> None:
    messages: list[str] = []
    attempts = Attempts(some_nodes(0), some_nodes(0), some_nodes(1), some_nodes(2, free=0))
    assert wait_for_room(attempts, ClusterConfig.of(wait=30), messages.append, autoscales=False) == "room"
    assert messages == [
        "0 of 2 nodes up; waiting up to 30 s.",
        "1 of 2 nodes up; waiting up to 30 s.",
        "2 of 2 nodes up, some of them busy; waiting up to 30 s.",
    ]


def test_missing_machines_are_waited_for_where_something_brings_them() -> None:
    messages: list[str] = []
    with pytest.raises(NoRoomError, match="needs 2 nodes"):
        wait_for_room(Attempts(some_nodes(1)), ClusterConfig(), messages.append, autoscales=False)
    assert messages == []
    assert wait_for_room(Attempts(some_nodes(1)), ClusterConfig(), messages.append, autoscales=True) == "room"
    assert messages == ["1 of 2 nodes up; waiting up to 600 s."]


def test_busy_machines_are_given_a_moment_in_any_case() -> None:
    messages: list[str] = []
    attempts = Attempts(some_nodes(2, free=0))
    assert wait_for_room(attempts, ClusterConfig.of(wait=0), messages.append, autoscales=False) == "room"
    assert messages == ["2 of 2 nodes up, some of them busy; waiting up to 10 s."]


def test_time_that_is_over_is_over() -> None:
    with pytest.raises(NoRoomError, match="needs 2 nodes"):
        wait_for_room(Attempts(*[some_nodes(1)] * 99), ClusterConfig.of(wait=0.5), lambda _: None, autoscales=True)
