"""`resnet-ops cluster template`: files for getting a Ray cluster elsewhere, and what to type then."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.orchestration import templates
from resnet_ops.orchestration.templates import ClusterValues, Kind, Written

from .console import Output, short
from .options import Debug, Json, option

EXAMPLES = """
[bold]resnet-ops cluster template slurm -o mine --nodes 4 --gpus-per-node 8 --partition gpu[/]  then: sbatch

[bold]resnet-ops cluster template kuberay -o mine --nodes 2:8 --gpus-per-node 1[/]  grows and shrinks

[bold]resnet-ops cluster template compose -o mine[/]  a cluster in containers on this machine
"""
default = ClusterValues.default
MACHINES, STORAGE, TRAINING = "Machines", "Shared storage", "What is trained"
KUBERNETES, SLURM, CLOUD = "KubeRay", "Slurm", "AWS and GCP"


def _option(name: str, panel: str) -> Any:
    return option(ClusterValues, name, panel)


def template(
    kind: Annotated[Kind, typer.Argument(help="How the cluster is made.", metavar="kuberay|slurm|aws|gcp|compose")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write into.")],
    name: Annotated[str, _option("name", MACHINES)] = default("name"),
    nodes: Annotated[str, _option("nodes", MACHINES)] = default("nodes"),
    gpus_per_node: Annotated[int, _option("gpus_per_node", MACHINES)] = default("gpus_per_node"),
    cpus_per_node: Annotated[int, _option("cpus_per_node", MACHINES)] = default("cpus_per_node"),
    memory_gib: Annotated[int, _option("memory_gib", MACHINES)] = default("memory_gib"),
    shm_gib: Annotated[int | None, _option("shm_gib", MACHINES)] = default("shm_gib"),
    image: Annotated[str | None, _option("image", MACHINES)] = default("image"),
    time_limit: Annotated[str, _option("time_limit", MACHINES)] = default("time_limit"),
    storage_path: Annotated[Path | None, _option("storage_path", STORAGE)] = default("storage_path"),
    storage_class: Annotated[str | None, _option("storage_class", STORAGE)] = default("storage_class"),
    storage_gib: Annotated[int, _option("storage_gib", STORAGE)] = default("storage_gib"),
    nfs_export: Annotated[str | None, _option("nfs_export", STORAGE)] = default("nfs_export"),
    model: Annotated[str, _option("model", TRAINING)] = default("model"),
    data: Annotated[str, _option("data", TRAINING)] = default("data"),
    epochs: Annotated[int, _option("epochs", TRAINING)] = default("epochs"),
    max_failures: Annotated[int, _option("max_failures", TRAINING)] = default("max_failures"),
    checkpoint_every: Annotated[str, _option("checkpoint_every", TRAINING)] = default("checkpoint_every"),
    namespace: Annotated[str, _option("namespace", KUBERNETES)] = default("namespace"),
    retries: Annotated[int, _option("retries", KUBERNETES)] = default("retries"),
    partition: Annotated[str | None, _option("partition", SLURM)] = default("partition"),
    account: Annotated[str | None, _option("account", SLURM)] = default("account"),
    environment: Annotated[Path | None, _option("environment", SLURM)] = default("environment"),
    region: Annotated[str | None, _option("region", CLOUD)] = default("region"),
    zone: Annotated[str | None, _option("zone", CLOUD)] = default("zone"),
    project: Annotated[str | None, _option("project", CLOUD)] = default("project"),
    instance_type: Annotated[str | None, _option("instance_type", CLOUD)] = default("instance_type"),
    machine_image: Annotated[str | None, _option("machine_image", CLOUD)] = default("machine_image"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the files that get a Ray cluster and train on it, each for its own tool, ready to edit.

    Nothing is started. The versions of Ray, Python and resnet-ops in them are those installed here.
    """
    shown = Output(json)
    values = ClusterValues.of(
        name=name,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        memory_gib=memory_gib,
        shm_gib=shm_gib,
        image=image,
        time_limit=time_limit,
        storage_path=storage_path,
        storage_class=storage_class,
        storage_gib=storage_gib,
        nfs_export=nfs_export,
        model=model,
        data=data,
        epochs=epochs,
        max_failures=max_failures,
        checkpoint_every=checkpoint_every,
        namespace=namespace,
        retries=retries,
        partition=partition,
        account=account,
        environment=environment,
        region=region,
        zone=zone,
        project=project,
        instance_type=instance_type,
        machine_image=machine_image,
    )
    _show(shown, templates.write(kind, values, output))


def _show(output: Output, written: Written) -> None:
    output.show(*(f"[bold]{escape(short(file))}[/]" for file in written.files))
    if written.fill_in:
        output.show("[yellow]To fill in:[/]", *(f"  {escape(line)}" for line in written.fill_in))
    output.show("Next steps:", *(f"  {escape(step)}" for step in written.next_steps))
    output.end(
        {
            "kind": written.kind,
            "directory": written.directory,
            "files": written.files,
            "fill_in": written.fill_in,
            "next_steps": written.next_steps,
        }
    )
