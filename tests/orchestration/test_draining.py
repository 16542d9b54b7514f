"""Which node a drain is about; real nodes are drained in tests/integration and tests/cluster."""

import pytest

from resnet_ops.errors import UserError
from resnet_ops.orchestration.draining import find_node
from resnet_ops.orchestration.ray_internals import HeadsNode

NODES = [HeadsNode("1a", "head", "h"), HeadsNode("2b", "10.0.0.2", "pod-1"), HeadsNode("3c", "node-2", "pod-2")]
TWINS = [HeadsNode("1a", "one", "h"), HeadsNode("2b", "two", "h"), HeadsNode("3c", "two", "g")]


def test_a_node_is_found_by_its_name_its_id_and_its_machine() -> None:
    assert find_node(NODES, "node-2", "h") == ("3c", "node-2")
    assert find_node(NODES, "2b", "h") == ("2b", "10.0.0.2")
    assert find_node(NODES, None, "pod-1") == ("2b", "10.0.0.2")


@pytest.mark.parametrize(
    ("nodes", "named", "host", "words"),
    [
        (NODES, "node-3", "h", ["no node called node-3", "Did you mean node-2?"]),
        (NODES, "zzz", "h", ["no node called zzz", "It has: 10.0.0.2, head, node-2"]),
        (NODES, None, "laptop", ["No node of the cluster runs on this machine (laptop)"]),
        (TWINS, None, "h", ["2 nodes of the cluster run on this machine", "--node two"]),
        (TWINS, "two", "h", ["2 nodes called two"]),
        ([], None, "h", ["No node of the cluster"]),
    ],
)
def test_what_is_no_single_node_is_refused(
    nodes: list[HeadsNode], named: str | None, host: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as refusal:
        find_node(nodes, named, host)
    assert all(word in str(refusal.value) for word in words)
