"""The values that the files of a new cluster are made from, the same for every kind of cluster.

The files are written by `templates`.
"""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from resnet_ops.cluster_config import NodeRange
from resnet_ops.config_base import Config, Positive, option

Kind = Literal["kuberay", "slurm", "aws", "gcp", "compose"]
# Options that apply to some kinds only; for another kind they are refused rather than ignored.
KINDS_OF_OPTION: dict[str, set[Kind]] = {
    "image": {"kuberay", "aws", "gcp", "compose"},
    "namespace": {"kuberay"},
    "storage_class": {"kuberay"},
    "storage_gib": {"kuberay"},
    "retries": {"kuberay", "slurm"},
    "time_limit": {"kuberay", "slurm"},
    "partition": {"slurm"},
    "account": {"slurm"},
    "environment": {"slurm"},
    "region": {"aws", "gcp"},
    "zone": {"aws", "gcp"},
    "project": {"gcp"},
    "instance_type": {"aws", "gcp"},
    "machine_image": {"aws", "gcp"},
    "nfs_export": {"aws", "gcp"},
    "ssh_cidr": {"aws", "gcp"},
    "bucket": {"aws", "gcp"},
    "spot": {"aws", "gcp"},
    "security_group": {"aws"},
    "subnet": {"aws"},
}


# A loader decodes some 300 ImageNet images a second on a core, and eight feed a GPU that trains a ResNet-50 on them.
CPUS_PER_GPU, GIB_PER_GPU = 8, 32


# Needs no quotes in a manifest, in a shell or after '#SBATCH'.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,:/@-]*$")]


class ClusterValues(Config):
    """Values that the files of a cluster are rendered with, the same for every kind."""

    name: Annotated[str, option("Name of the cluster, of the job and of the run.", panel="Nodes")] = "resnet-ops"
    nodes: Annotated[
        NodeRange,
        option(
            "Number of nodes; MIN:MAX for a cluster that scales up and down.",
            panel="Nodes",
            metavar="N or MIN:MAX",
        ),
    ] = NodeRange(2, 2)
    gpus_per_node: Annotated[int, option("GPUs per node; 0 trains on CPUs.", panel="Nodes", ge=0)] = 0
    cpus_per_node: Annotated[
        Positive | None,
        option(
            f"CPU cores per node; by default {CPUS_PER_GPU} per GPU, 4 without GPUs, and on AWS and GCP those of the "
            "instance type.",
            panel="Nodes",
        ),
    ] = None
    memory_gib: Annotated[
        int | None,
        option(
            f"Memory per node in GiB; by default {GIB_PER_GPU} per GPU, 16 without GPUs, and on AWS and GCP that "
            "of the instance type.",
            panel="Nodes",
            ge=4,
        ),
    ] = None
    shm_gib: Annotated[
        Positive | None,
        option("Shared memory (/dev/shm) per node in GiB; by default half of its memory.", panel="Nodes"),
    ] = None
    image: Annotated[
        Word | None,
        option("Container image; by default resnet-ops:VERSION, built from the Dockerfile.", panel="Nodes"),
    ] = None
    time_limit: Annotated[
        str,
        option("Time limit of a job, such as 90m, 12h, 2d.", panel="Nodes", pattern=r"^[1-9]\d{0,4}[mhd]$"),
    ] = "1d"
    storage_path: Annotated[
        Path | None,
        option(
            "Path of the shared storage, the same on each node, for runs and data; by default /mnt/resnet-ops, on "
            "Slurm ~/resnet-ops.",
            panel="Shared storage",
        ),
    ] = None
    storage_class: Annotated[
        Word | None,
        option(
            "Kubernetes storage class that supports ReadWriteMany volumes; by default that of the cluster.",
            panel="Shared storage",
        ),
    ] = None
    storage_gib: Annotated[
        Positive, option("Size of the shared volume in GiB (Kubernetes).", panel="Shared storage")
    ] = 100
    nfs_export: Annotated[
        Word | None,
        option(
            "NFS export to mount, HOST:/PATH, from EFS, Filestore or an NFS server (AWS and GCP).",
            panel="Shared storage",
        ),
    ] = None

    namespace: Annotated[str, option("Kubernetes namespace.", panel="KubeRay")] = "default"
    retries: Annotated[
        int,
        option(
            "Times that a job which was killed is tried again, resuming the run: on a new cluster, or on Slurm queued "
            "again. Errors that would recur are not retried.",
            panel="KubeRay",
            ge=0,
        ),
    ] = 3
    partition: Annotated[Word | None, option("Slurm partition; by default that of the site.", panel="Slurm")] = None
    account: Annotated[Word | None, option("Slurm account to charge; by default yours.", panel="Slurm")] = None
    environment: Annotated[
        Path | None,
        option(
            "Virtual environment with resnet-ops, at a path that all nodes see; by default this one.",
            panel="Slurm",
        ),
    ] = None
    region: Annotated[
        Word | None,
        option("Region; by default us-west-2 on AWS, us-west1 on GCP.", panel="AWS and GCP"),
    ] = None
    zone: Annotated[
        Word | None, option("Availability zone; by default the region's first, 'a'.", panel="AWS and GCP")
    ] = None
    project: Annotated[Word | None, option("Google Cloud project to bill.", panel="AWS and GCP")] = None
    instance_type: Annotated[
        Word | None,
        option(
            "Instance type of the workers; by default one with as many L4 GPUs as --gpus-per-node.",
            panel="AWS and GCP",
        ),
    ] = None
    machine_image: Annotated[
        Word | None,
        option(
            "Virtual machine image with Docker and, for GPUs, the NVIDIA driver and container toolkit.",
            panel="AWS and GCP",
        ),
    ] = None

    ssh_cidr: Annotated[
        str | None,
        option("Addresses that may connect by SSH, such as 203.0.113.7/32.", panel="AWS and GCP", metavar="CIDR"),
    ] = None
    bucket: Annotated[Word | None, option("Bucket that the workers may read and write.", panel="AWS and GCP")] = None
    spot: Annotated[
        bool, option("Use spot instances as workers: cheaper, but they may be preempted.", panel="AWS and GCP")
    ] = False
    security_group: Annotated[
        Word | None, option("Security group of the machines, made by prepare.py.", panel="AWS and GCP")
    ] = None
    subnet: Annotated[Word | None, option("Subnet of workers with an EFA network interface.", panel="AWS and GCP")] = (
        None
    )

    @field_validator("name", "namespace")
    @classmethod
    def _is_kubernetes_name(cls, name: str, info: ValidationInfo) -> str:
        # RFC 1123. KubeRay appends to a RayJob's name, and takes 47 characters at most (MaxRayJobNameLength).
        longest = 47 if info.field_name == "name" else 63
        if re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) is None or len(name) > longest:
            raise ValueError(
                f"must be lower-case letters, digits and '-', at most {longest}, with a letter or digit at both ends"
            )
        return name

    @field_validator("storage_path", "environment")
    @classmethod
    def _path_is_plain(cls, path: Path | None) -> Path | None:
        # It is used in mounts, SRC:DST, which cannot be quoted.
        if path is not None and re.fullmatch(r"/[A-Za-z0-9._/-]*[A-Za-z0-9._-]", str(path)) is None:
            raise ValueError("must be an absolute path of letters, digits, '.', '_', '-' and '/'")
        return path

    @field_validator("shm_gib")
    @classmethod
    def _shm_is_part_of_memory(cls, shm: int | None, info: ValidationInfo) -> int | None:
        memory = info.data.get("memory_gib")
        if shm is not None and memory is not None and shm >= memory:
            raise ValueError(f"must be less than the node's memory, {memory} GiB")
        return shm

    @field_validator("ssh_cidr")
    @classmethod
    def _range_is_not_the_world(cls, cidr: str | None) -> str | None:
        if cidr is not None and ip_network(cidr).prefixlen == 0:
            raise ValueError("must not be all addresses: name those that you connect from, such as 203.0.113.7/32")
        return cidr

    @field_validator("nfs_export")
    @classmethod
    def _export_is_host_and_path(cls, export: str | None) -> str | None:
        if export is not None and ":/" not in export:
            raise ValueError("must be HOST:/PATH")
        return export
