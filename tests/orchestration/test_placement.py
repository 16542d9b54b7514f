"""Laying jobs out on machines: distinct ones, none assigned more than it has free."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.placement import Request, choose_device, explain_refusal, place_workers


def node(
    name: str, cpus: float, gpus: float = 0, free_cpus: float | None = None, free_gpus: float | None = None
) -> Node:
    return Node(
        name, name, cpus, gpus, cpus if free_cpus is None else free_cpus, gpus if free_gpus is None else free_gpus
    )


FOUR = [node(name, 64, 8) for name in "abcd"]


def request(nodes: str, device: str = "cuda", **options: object) -> Request:
    return Request.of(ClusterConfig.of(nodes=nodes, **options), device)  # type: ignore[arg-type]


def test_each_machine_gets_a_worker_for_each_gpu_and_each_worker_its_share_of_the_cores() -> None:
    layout = place_workers(FOUR, request("4"))
    assert layout is not None
    assert (layout.workers, layout.resources) == (32, {"CPU": 8, "GPU": 1})
    assert [selector["ray.io/node-id"] for selector in layout.label_selectors] == [
        name for name in "abcd" for _ in range(8)
    ]
    some = place_workers(FOUR, request("2", gpus_per_node=4, cpus_per_worker=2))
    assert some is not None
    assert (some.workers, some.resources) == (8, {"CPU": 2, "GPU": 1})
    assert len({node.id for node, _ in some.assignments}) == 2


def test_machines_may_differ() -> None:
    layout = place_workers([node("a", 64, 8), node("b", 16, 4)], request("2"))
    assert layout is not None
    assert sorted(workers for _, workers in layout.assignments) == [4, 8]
    assert layout.resources["CPU"] == 4  # the smaller share: Ray gives every worker the same


def test_cpu_jobs_take_whole_machines_and_spare_those_with_gpus() -> None:
    layout = place_workers([*FOUR, node("e", 8), node("f", 4)], request("2", "cpu"))
    assert layout is not None
    assert {node.id for node, _ in layout.assignments} == {"e", "f"}
    assert (layout.workers, layout.resources) == (2, {"CPU": 4})


def test_busy_machines_are_passed_over_and_ones_own_workers_do_not_count() -> None:
    nodes = [node("a", 4, free_cpus=0), node("b", 4), node("c", 4, free_cpus=2)]
    assert place_workers(nodes, request("2", "cpu")) is None
    own = place_workers(nodes, request("2", "cpu"), {"a": 1})
    assert own is not None
    assert {node.id for node, _ in own.assignments} == {"a", "b"}
    fewer = place_workers(nodes, request("2", "cpu", cpus_per_worker=2))
    assert fewer is not None
    assert {node.id for node, _ in fewer.assignments} == {"b", "c"}


def test_an_elastic_job_takes_what_there_is() -> None:
    for count, expected in ((1, None), (2, 2), (3, 3), (4, 3)):
        layout = place_workers(FOUR[:count], request("2:3"))
        assert (layout and len(layout.assignments)) == expected


@pytest.mark.parametrize(
    ("nodes", "job", "words"),
    [
        (FOUR, request("5"), ["--nodes 5 needs 5 nodes with a GPU each", "has 4", "Use --nodes 4"]),
        (FOUR, request("2:9", gpus_per_node=16), ["--nodes 2:9", "16 GPUs", "has 0", "cluster template"]),
        ([node("h", 8, 8, free_gpus=6)], request("1"), ["h: 6 of 8 GPUs free", "busy", "--wait 600"]),
        ([node("h", 8, free_cpus=7)], request("1", "cpu"), ["7 of 8 CPUs free", "--cpus-per-worker"]),
        ([], request("1", "cpu"), ["(none)"]),
    ],
    ids=["few", "small", "busy", "busy_cpus", "nothing"],
)
def test_a_refusal_says_what_was_asked_what_is_there_and_what_to_do(
    nodes: list[Node], job: Request, words: list[str]
) -> None:
    assert place_workers(nodes, job) is None
    refusal = explain_refusal(nodes, job)
    assert refusal.nodes == tuple(nodes)
    for word in words:
        assert word in str(refusal), str(refusal)


def test_options_for_gpus_and_for_cpus_are_not_mixed() -> None:
    with pytest.raises(UserError, match="no GPUs available"):
        request("1", "cpu", gpus_per_node=2)
    with pytest.raises(UserError, match="training on CPUs, but GPUs are available"):
        request("1", "cuda", workers_per_node=2)


def test_the_device_is_the_gpu_where_there_is_one() -> None:
    assert choose_device(ClusterConfig(), FOUR, "x") == "cuda"
    assert choose_device(ClusterConfig(device="cpu"), FOUR, "x") == "cpu"
    assert choose_device(ClusterConfig(), [node("a", 1)], "x") == "cpu"
    with pytest.raises(UserError, match="no usable CUDA GPU x"):
        choose_device(ClusterConfig(device="cuda"), [node("a", 1)], "x")


amounts = st.integers(0, 8)
clusters = st.lists(st.tuples(amounts, amounts, amounts, amounts), max_size=6).map(
    lambda rows: [
        Node(str(i), str(i), cpus, gpus, min(cpus, free_cpus), min(gpus, free_gpus))
        for i, (cpus, gpus, free_cpus, free_gpus) in enumerate(rows)
    ]
)


@given(clusters, st.integers(1, 5), st.integers(0, 3), st.sampled_from(["cpu", "cuda"]), st.none() | st.integers(1, 4),
       st.none() | st.integers(1, 4))  # fmt: skip
def test_whatever_is_chosen_fits(
    nodes: list[Node], fewest: int, more: int, device: str, workers: int | None, cpus: int | None
) -> None:
    job = Request(device, fewest, fewest + more, workers, cpus)  # type: ignore[arg-type]
    layout = place_workers(nodes, job)
    if layout is None:
        smallest = Request(device, 1, 1, workers, cpus)  # type: ignore[arg-type]
        assert sum(place_workers([n], smallest) is not None for n in nodes) < fewest
        return
    assert fewest <= len(layout.assignments) <= fewest + more
    assert len({n.id for n, _ in layout.assignments}) == len(layout.assignments)
    for n, count in layout.assignments:
        assert count >= 1
        assert count * layout.cpus <= n.free_cpus + 1e-6
        if device == "cuda":
            assert count == (workers or n.gpus)
            assert count <= n.free_gpus
