"""`resnet-ops cluster`: starts and stops a local Ray cluster, and shows the nodes of any cluster."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops.orchestration import draining, local
from resnet_ops.orchestration.connect import AUTO
from resnet_ops.orchestration.draining import DrainConfig
from resnet_ops.orchestration.local import LocalConfig
from resnet_ops.orchestration.local_state import clusters_elsewhere, describe_elsewhere
from resnet_ops.orchestration.status import ClusterStatus, read_status

from . import template
from .config_options import Debug, Json, Options, options_of
from .console import Output, ago, err, node_table
from .help import Command, Group
from .startup import importing

UP_EXAMPLES = """
resnet-ops cluster up --nodes 4  # then: resnet-ops train --nodes 4
resnet-ops cluster down
"""


@options_of(LocalConfig)
def up(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Start a Ray cluster of several nodes on this machine, for testing; it runs until `cluster down`.

    The nodes share this machine's GPUs, or those in CUDA_VISIBLE_DEVICES. Access needs the token in ~/.ray/auth_token,
    which is created if there is none.
    """
    output = Output(json)
    config = options.make(LocalConfig)
    with err.status("Starting", spinner="dots") as status:
        cluster = local.up(config, lambda step: status.update(escape(step)))
    output.show(
        f"[bold green]Running:[/] {_describe(cluster)}, and a head node",
        f"  address    {cluster.address}",
        f"  dashboard  {cluster.dashboard} (from this machine only)",
        "Next steps:",
        f"  {cluster.next_steps[0]}",
        f"  {cluster.next_steps[1]}  as a submitted job",
        *(f"  {step}" for step in cluster.next_steps[2:]),
    )
    output.end(cluster)


def _describe(cluster: local.UpResult) -> str:
    gpus = cluster.gpus_per_node
    nodes = f"{_count(cluster.nodes, 'node')} with {_count(cluster.cpus_per_node, 'CPU')}"
    if not any(gpus):
        return f"{nodes} each"
    if 0 in gpus:
        number = sum(gpus)
        return f"{nodes} each, of which only the first {'has' if number == 1 else f'{number} have'} a GPU"
    amounts = _count(gpus[0], "GPU") if gpus[0] == gpus[-1] else f"{gpus[-1]} or {gpus[0]} GPUs"
    return f"{nodes} and {amounts} each"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
    """Show the nodes of a Ray cluster, their free resources, and the largest training that fits now."""
    output = Output(json)
    with err.status("Asking the cluster", spinner="dots"), importing():
        result = read_status(cluster)
    _show(output, result)


def _show(output: Output, status: ClusterStatus) -> None:
    totals = status.totals
    states = {node.id: (node.address, node.state) for node in status.nodes}
    amounts = [f"{totals.cpus:g} CPUs, {totals.free_cpus:g} free"]
    if totals.gpus:
        amounts.append(f"{totals.gpus:g} GPUs, {totals.free_gpus:g} free")
    output.show(
        f"[bold]{status.address}[/]",
        node_table([each.node for each in status.nodes], states),
        f"{totals.nodes} nodes alive: {'; '.join(amounts)}",
        *(
            f"  {escape(driver.command)} on {driver.host}, {ago(datetime.fromtimestamp(driver.started, UTC))}"
            for driver in status.running
        ),
        f"[bold]Fits now:[/] resnet-ops train {status.fits}" if status.fits else "[yellow]Nothing fits now.[/]",
    )
    output.end(status)


def down(json: Json = False, debug: Debug = False) -> None:
    """Stop the cluster that `cluster up` started."""
    output = Output(json)
    with err.status("Stopping", spinner="dots"):
        result = local.down()
    output.show(
        f"Stopped the local cluster (--nodes {result.nodes})." if result.ended else "No local cluster is running here."
    )
    if not result.ended and (elsewhere := describe_elsewhere(clusters_elsewhere())):
        output.show(escape(elsewhere))
    output.end(result)


DRAIN_EXAMPLES = """
resnet-ops cluster drain  # this machine will be stopped
resnet-ops cluster drain --node node-2 --timeout 120
"""


@options_of(DrainConfig)
def drain(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Announce that a node will be stopped: workers save a checkpoint and go on without it.

    Returns when the node has left the cluster, or after --timeout. It gets no more work in any case.
    """
    output = Output(json)
    config = options.make(DrainConfig)
    with err.status("Draining", spinner="dots"), importing():
        result = draining.drain(config)
    state = "has left the cluster" if result.left else f"still has work after {config.timeout:g} s"
    output.show(f"{escape(result.node)} {state}.")
    output.end(result)


app = typer.Typer(cls=Group, add_completion=False, help="Create and inspect Ray clusters.")
app.command("up", cls=Command, epilog=UP_EXAMPLES)(up)
app.command("status", cls=Command)(status)
app.command("down", cls=Command)(down)
app.command("drain", cls=Command, epilog=DRAIN_EXAMPLES)(drain)
app.command("template", cls=Command, epilog=template.EXAMPLES)(template.template)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Create and inspect Ray clusters."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
