"""`resnet-ops cluster status`: the machines of a cluster, what is free on them, what would fit."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops.orchestration.connect import AUTO
from resnet_ops.orchestration.status import Status, look

from .clock import importing
from .console import Output, ago, err
from .nodes import node_table
from .options import Debug, Json


def status(
    cluster: Annotated[
        str, typer.Option(help="Ray cluster: 'auto' (RAY_ADDRESS, or the one running here) or an address.")
    ] = AUTO,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the machines of a Ray cluster, what is free on them, and the largest job that would fit now."""
    output = Output(json)
    with err.status("Asking the cluster", spinner="dots"), importing():
        seen = look(cluster)
    _show(output, seen)


def _show(output: Output, status: Status) -> None:
    nodes, living, fits = [seen.node for seen in status.seen], status.living, status.fits
    shown = node_table(nodes, {seen.node.id: (seen.address, seen.state) for seen in status.seen})
    totals = {
        "nodes": len(living),
        "cpus": sum(node.cpus for node in living),
        "gpus": sum(node.gpus for node in living),
        "free_cpus": sum(node.free_cpus for node in living),
        "free_gpus": sum(node.free_gpus for node in living),
    }
    amounts = [f"{totals['cpus']:g} CPUs, {totals['free_cpus']:g} free"]
    if totals["gpus"]:
        amounts.append(f"{totals['gpus']:g} GPUs, {totals['free_gpus']:g} free")
    output.show(
        f"[bold]{status.address}[/]",
        shown,
        f"{totals['nodes']} nodes alive: {'; '.join(amounts)}",
        *(
            f"  {escape(driver.command)} on {driver.host}, {ago(datetime.fromtimestamp(driver.started, UTC))}"
            for driver in status.drivers
        ),
        f"[bold]Fits now:[/] resnet-ops train {fits}" if fits else "[yellow]Nothing fits now.[/]",
    )
    output.end(
        {
            "address": status.address,
            "nodes": [vars(seen.node) | {"address": seen.address, "state": seen.state} for seen in status.seen],
            "totals": totals,
            "fits": vars(fits) | {"options": fits.options} if fits else None,
            "running": [vars(driver) for driver in status.drivers],
        }
    )
