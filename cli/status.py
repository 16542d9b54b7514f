"""`resnet-ops cluster status`: the machines of a cluster, what is free on them, what would fit."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops.orchestration.connect import AUTO
from resnet_ops.orchestration.status import ClusterStatus, read_status

from .console import Output, ago, err
from .nodes import node_table
from .options import Debug, Json
from .startup import importing


def status(
    cluster: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Ray cluster: auto (RAY_ADDRESS, or the one running on this machine) or an address."
        ),
    ] = AUTO,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the machines of a Ray cluster, their free resources, and the largest training that fits now."""
    output = Output(json)
    with err.status("Asking the cluster", spinner="dots"), importing():
        seen = read_status(cluster)
    _show(output, seen)


def _show(output: Output, status: ClusterStatus) -> None:
    totals = status.totals
    shown = node_table(
        [seen.node for seen in status.nodes], {seen.id: (seen.address, seen.state) for seen in status.nodes}
    )
    amounts = [f"{totals.cpus:g} CPUs, {totals.free_cpus:g} free"]
    if totals.gpus:
        amounts.append(f"{totals.gpus:g} GPUs, {totals.free_gpus:g} free")
    output.show(
        f"[bold]{status.address}[/]",
        shown,
        f"{totals.nodes} nodes alive: {'; '.join(amounts)}",
        *(
            f"  {escape(driver.command)} on {driver.host}, {ago(datetime.fromtimestamp(driver.started, UTC))}"
            for driver in status.running
        ),
        f"[bold]Fits now:[/] resnet-ops train {status.fits}" if status.fits else "[yellow]Nothing fits now.[/]",
    )
    output.end(status)
