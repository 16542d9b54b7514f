"""`resnet-ops cluster up` and `down`: a cluster of several nodes on this machine, to try things on."""

from typing import Annotated

from rich.markup import escape

from resnet_ops.orchestration import local
from resnet_ops.orchestration.local import LocalConfig

from .console import Output, err
from .options import Debug, Json, option

UP_EXAMPLES = """
[bold]resnet-ops cluster up --nodes 4[/]  then: resnet-ops train --nodes 4

[bold]resnet-ops cluster down[/]  ends it
"""
default = LocalConfig.default


def up(
    nodes: Annotated[int, option(LocalConfig, "nodes")] = default("nodes"),
    cpus_per_node: Annotated[int, option(LocalConfig, "cpus_per_node")] = default("cpus_per_node"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a Ray cluster of several nodes on this machine, to try things on; it stays until `cluster down`.

    It asks for the token in ~/.ray/auth_token, which is made if there is none.
    """
    output = Output(json)
    config = LocalConfig.of(nodes=nodes, cpus_per_node=cpus_per_node)
    with err.status("Starting", spinner="dots") as status:
        cluster = local.up(config, lambda what: status.update(escape(what)))
    place = "" if local.is_found(cluster) else f" --cluster {cluster.address}"
    steps = (
        f"resnet-ops train --nodes {nodes}{place}",
        f"resnet-ops train --nodes {nodes} --cluster {cluster.dashboard}",
        f"resnet-ops cluster status{place}",
        "resnet-ops cluster down",
    )
    output.show(
        f"[bold green]Running:[/] {nodes} {'node' if nodes == 1 else 'nodes'} with {cpus_per_node} CPU each, and a "
        "head node",
        f"  address    {cluster.address}",
        f"  dashboard  {cluster.dashboard} (from this machine only)",
        "Next steps:",
        f"  {steps[0]}",
        f"  {steps[1]}  as a submitted job",
        *(f"  {step}" for step in steps[2:]),
    )
    output.end(
        {
            "address": cluster.address,
            "dashboard": cluster.dashboard,
            "nodes": nodes,
            "cpus_per_node": cpus_per_node,
            "folder": cluster.folder,
            "next_steps": steps,
        }
    )


def down(json: Json = False, debug: Debug = False) -> None:
    """End the cluster that `cluster up` started, and nothing else."""
    output = Output(json)
    with err.status("Stopping", spinner="dots"):
        cluster = local.down()
    output.show(
        "No local cluster is running." if cluster is None else f"Stopped the local cluster (--nodes {cluster.nodes})."
    )
    output.end({"ended": cluster is not None, "address": cluster.address if cluster else None})
