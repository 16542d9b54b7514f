"""Which links between machines work: on real network interfaces of simulated machines, and which interface is meant."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from resnet_ops.orchestration.links import Endpoint, addresses_of_interfaces, matching_interfaces
from resnet_ops.orchestration.network import describe_network
from tests.cluster.namespaces import Machines, machines, missing_requirement

# Run on each machine: says its port, is told those of all, and says which of them it cannot reach, and in what time.
MACHINE = """
import json, sys, time
from resnet_ops.orchestration import links
from resnet_ops.orchestration.links import Endpoint, addresses_of_interfaces, listen, reach
links.LINK_TIMEOUT_S = 2.0
name, nonce, count = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
own = Endpoint(name, addresses_of_interfaces()["eth0"], "eth0")
for line in sys.stdin:
    print(json.dumps([own.host, own.address, own.interface, listen(own, nonce, count - 1)]), flush=True)
    peers = [(Endpoint(*peer[:3]), peer[3]) for peer in json.loads(next(sys.stdin)) if peer[0] != own.host]
    began = time.monotonic()
    print(json.dumps([[*map(str, reach(own, peers, nonce))], time.monotonic() - began]), flush=True)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Machines]:
    if reason := missing_requirement():
        pytest.skip(reason)
    with machines(3, ray=False) as simulated:
        yield simulated


@pytest.fixture(scope="module")
def programs(network: Machines) -> Iterator[list["subprocess.Popen[str]"]]:
    started = [
        network.run(machine, [sys.executable, "-c", MACHINE, machine.name, "5a" * 16, "3"], stdin=subprocess.PIPE)
        for machine in network.all
    ]
    yield started
    for program in started:
        program.kill()
        program.communicate()


def ask(program: "subprocess.Popen[str]", line: Any) -> None:
    assert program.stdin is not None
    program.stdin.write(json.dumps(line) + "\n")
    program.stdin.flush()


def answer(program: "subprocess.Popen[str]") -> Any:
    assert program.stdout is not None
    return json.loads(program.stdout.readline())


def bad_links(programs: list["subprocess.Popen[str]"]) -> tuple[list[str], float]:
    """Return the bad links that the machines find, and the seconds that the slowest one needs."""
    for program in programs:
        ask(program, "listen")
    ports = [answer(program) for program in programs]
    for program in programs:
        ask(program, ports)
    answers = [answer(program) for program in programs]
    return sorted(link for links, _ in answers for link in links), max(seconds for _, seconds in answers)


def test_healthy_links_are_found_so_at_once(programs: list["subprocess.Popen[str]"]) -> None:
    links, seconds = bad_links(programs)
    assert links == []
    assert seconds < 1, seconds


def test_a_link_that_drops_packets_is_named_within_seconds(
    network: Machines, programs: list["subprocess.Popen[str]"]
) -> None:
    network.drop(network.all[1], network.all[2])
    began = time.monotonic()
    links, _ = bad_links(programs)
    assert time.monotonic() - began < 5
    assert links == [
        "machine-1 cannot reach machine-2 at 10.77.0.3 (eth0): no answer within 2 s",
        "machine-2 cannot reach machine-1 at 10.77.0.2 (eth0): no answer within 2 s",
    ]
    network.restore(network.all[1], network.all[2])
    assert bad_links(programs)[0] == []


def test_this_machine_has_its_loopback() -> None:
    assert addresses_of_interfaces()["lo"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("setting", "nccl", "gloo"),
    [
        ("eth0", ["eth0", "eth01"], ["eth0"]),
        ("=eth0", ["eth0"], []),
        ("eth,ib", ["eth0", "eth01", "ib0"], []),
        ("ib0,eth0", ["eth0", "eth01", "ib0"], ["eth0", "ib0"]),
        ("^lo,docker", ["eth0", "eth01", "ib0"], []),
        ("^=eth0", ["lo", "docker0", "eth01", "ib0"], []),
        ("wlan", [], []),
    ],
)
def test_settings_select_what_gloo_and_nccl_take_them_for(setting: str, nccl: list[str], gloo: list[str]) -> None:
    names = ["lo", "docker0", "eth0", "eth01", "ib0"]
    assert matching_interfaces(setting, names, prefixes=True) == nccl
    assert matching_interfaces(setting, names, prefixes=False) == gloo


def test_the_network_of_a_group_is_told_in_one_line() -> None:
    group = [Endpoint("a", "10.0.0.1", "eth0"), Endpoint("b", "10.0.0.2", "ens5"), Endpoint("c", "10.0.0.3", "eth0")]
    assert describe_network(group) == "Network: ens5 of b (10.0.0.2); eth0 of a (10.0.0.1), c (10.0.0.3)"
