"""`resnet-ops cluster up` and `down`: a cluster of several nodes on this machine, to try things on."""

from rich.markup import escape

from resnet_ops.orchestration import local
from resnet_ops.orchestration.local import LocalConfig

from .console import Output, err
from .options import Debug, Json, Options, options_of

UP_EXAMPLES = """
resnet-ops cluster up --nodes 4  # then: resnet-ops train --nodes 4
resnet-ops cluster down
"""


@options_of(LocalConfig)
def up(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Start a Ray cluster of several nodes on this machine, for testing; it runs until `cluster down`.

    Access needs the token in ~/.ray/auth_token, which is created if there is none.
    """
    output = Output(json)
    config = options.make(LocalConfig)
    nodes, cpus_per_node = config.nodes, config.cpus_per_node
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
        f"[bold green]Up:[/] {nodes} {'node' if nodes == 1 else 'nodes'} of {cpus_per_node} CPU each, and a head",
        f"  address    {cluster.address}",
        f"  dashboard  {cluster.dashboard} (from this machine only)",
        "Then:",
        f"  {steps[0]}",
        f"  {steps[1]}  as a job of its own",
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
    """Stop the cluster that `cluster up` started."""
    output = Output(json)
    with err.status("Ending", spinner="dots"):
        cluster = local.down()
    output.show("No local cluster runs." if cluster is None else f"Ended: the local cluster (--nodes {cluster.nodes}).")
    output.end({"ended": cluster is not None, "address": cluster.address if cluster else None})
