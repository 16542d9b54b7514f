"""Machines of a cluster as a table: for `cluster status`, and for a job that does not fit."""

from collections.abc import Iterable, Mapping

from rich.markup import escape
from rich.table import Table

from resnet_ops.orchestration.placement import Node

from .console import table

COLORS = {"alive": "green", "not answering": "bold red", "gone": "dim"}


def node_table(nodes: Iterable[Node], seen: Mapping[str, tuple[str, str]] | None = None) -> Table:
    """Make a table of machines.

    Args:
        nodes: The machines, a row each, in their order.
        seen: By a machine's id its address and state, where they are known.
    """
    nodes = tuple(nodes)
    gpus = any(node.gpus for node in nodes)
    columns = ["node", *(["address"] if seen else []), ">CPUs", ">free", *([">GPUs", ">free"] if gpus else [])]
    made = table(*columns, *(["state"] if seen else []))
    for node in nodes:
        amounts = [node.cpus, node.free_cpus, *([node.gpus, node.free_gpus] if gpus else [])]
        cells = [escape(node.name), *(f"{amount:g}" for amount in amounts)]
        if seen:
            address, state = seen[node.id]
            cells = [cells[0], address, *cells[1:], f"[{COLORS[state]}]{state}[/]"]
        made.add_row(*cells)
    return made
