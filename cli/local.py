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
    output.show(
        f"[bold green]Running:[/] {nodes} {'node' if nodes == 1 else 'nodes'} with {cpus_per_node} CPU each, and a "
        "head node",
        f"  address    {cluster.address}",
        f"  dashboard  {cluster.dashboard} (from this machine only)",
        "Next steps:",
        f"  {cluster.next_steps[0]}",
        f"  {cluster.next_steps[1]}  as a submitted job",
        *(f"  {step}" for step in cluster.next_steps[2:]),
    )
    output.end(cluster)


def down(json: Json = False, debug: Debug = False) -> None:
    """Stop the cluster that `cluster up` started."""
    output = Output(json)
    with err.status("Stopping", spinner="dots"):
        result = local.down()
    output.show(
        f"Stopped the local cluster (--nodes {result.nodes})." if result.ended else "No local cluster is running."
    )
    output.end(result)
