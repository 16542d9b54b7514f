"""Ready-to-edit files for getting a Ray cluster elsewhere: KubeRay, Slurm, `ray up` on a cloud, Compose.

The texts are Jinja templates in cluster/, installed as resnet_ops.cluster; this module has the one set of
values that all of them are made from, and writes the files. What is trained there is said by options of
`resnet-ops train`, as the caller gives them. It starts nothing.
"""

import json
import platform
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from resnet_ops.config import NodeRange
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.files import Place
from resnet_ops.options import Config, Positive, option
from resnet_ops.results import Result

Kind = Literal["kuberay", "slurm", "aws", "gcp", "compose"]
FILL_IN = "FILL-IN"

# Each kind's files, and the template that each is made from.
FILES: dict[Kind, dict[str, str]] = {
    "kuberay": {
        "storage.yaml": "kuberay/storage.yaml.j2",
        "raycluster.yaml": "kuberay/raycluster.yaml.j2",
        "rayjob.yaml": "kuberay/rayjob.yaml.j2",
        "Dockerfile": "docker/Dockerfile.j2",
    },
    "slurm": {"train.sbatch": "slurm/train.sbatch.j2"},
    "aws": {
        "cluster.yaml": "aws/cluster.yaml.j2",
        "train.sh": "docker/train.sh.j2",
        "Dockerfile": "docker/Dockerfile.j2",
    },
    "gcp": {
        "cluster.yaml": "gcp/cluster.yaml.j2",
        "train.sh": "docker/train.sh.j2",
        "Dockerfile": "docker/Dockerfile.j2",
    },
    "compose": {
        "compose.yaml": "docker/compose.yaml.j2",
        "train.sh": "docker/train.sh.j2",
        "Dockerfile": "docker/Dockerfile.j2",
    },
}
# The options that mean something to some kinds only; given to another, they are refused rather than ignored.
ONLY: dict[str, set[Kind]] = {
    "image": {"kuberay", "aws", "gcp", "compose"},
    "namespace": {"kuberay"},
    "storage_class": {"kuberay"},
    "storage_gib": {"kuberay"},
    "retries": {"kuberay"},
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
}
# Machines by their number of GPUs (all of them L4). The first two have 4 vCPUs and 16 GiB, the defaults below.
INSTANCE_TYPES = {
    "aws": {0: "m5.xlarge", 1: "g6.xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
    "gcp": {0: "e2-standard-4", 1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
}
REGIONS = {"aws": "us-west-2", "gcp": "us-west1"}
SECONDS = {"m": 60, "h": 3600, "d": 86400}

# What may stand unquoted in a manifest, in a shell and after '#SBATCH'.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,:/@-]*$")]


class ClusterValues(Config):
    """What a cluster's files are made from; the same for every kind."""

    name: Annotated[str, option("Name of the cluster, of the job and of the run.", panel="Machines")] = "resnet-ops"
    nodes: Annotated[
        NodeRange,
        option(
            "Number of machines; MIN:MAX for a cluster that scales up and down.",
            panel="Machines",
            metavar="N or MIN:MAX",
        ),
    ] = NodeRange(2, 2)
    gpus_per_node: Annotated[int, option("GPUs per machine; 0 trains on CPUs.", panel="Machines", ge=0)] = 0
    cpus_per_node: Annotated[Positive, option("CPU cores per machine.", panel="Machines")] = 4
    memory_gib: Annotated[int, option("Memory per machine in GiB.", panel="Machines", ge=4)] = 16
    shm_gib: Annotated[
        Positive | None,
        option("Shared memory (/dev/shm) per machine in GiB; by default half of its memory.", panel="Machines"),
    ] = None
    image: Annotated[
        Word | None,
        option("Container image; by default resnet-ops:VERSION, built from the Dockerfile.", panel="Machines"),
    ] = None
    time_limit: Annotated[
        str,
        option("Time limit of a job, such as 90m, 12h, 2d.", panel="Machines", pattern=r"^[1-9]\d{0,4}[mhd]$"),
    ] = "1d"
    storage_path: Annotated[
        Path | None,
        option(
            "Path of the shared storage, the same on each machine, for runs and data; by default /mnt/resnet-ops, on "
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
        int, option("New clusters to retry with, resuming the run, if the job fails.", panel="KubeRay", ge=0)
    ] = 3
    partition: Annotated[Word | None, option("Slurm partition; by default that of the site.", panel="Slurm")] = None
    account: Annotated[Word | None, option("Slurm account to charge; by default yours.", panel="Slurm")] = None
    environment: Annotated[
        Path | None,
        option(
            "Virtual environment with resnet-ops, at a path that all machines see; by default this one.",
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

    @field_validator("name", "namespace")
    @classmethod
    def _kubernetes_takes_it(cls, name: str, info: ValidationInfo) -> str:
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
        # It goes into mounts, SRC:DST, where nothing can be quoted.
        if path is not None and re.fullmatch(r"/[A-Za-z0-9._/-]*[A-Za-z0-9._-]", str(path)) is None:
            raise ValueError("must be an absolute path of letters, digits, '.', '_', '-' and '/'")
        return path

    @field_validator("shm_gib")
    @classmethod
    def _shm_is_part_of_memory(cls, shm: int | None, info: ValidationInfo) -> int | None:
        memory = info.data.get("memory_gib")
        if shm is not None and memory is not None and shm >= memory:
            raise ValueError(f"must be less than the machine's memory, {memory} GiB")
        return shm

    @field_validator("nfs_export")
    @classmethod
    def _export_is_host_and_path(cls, export: str | None) -> str | None:
        if export is not None and ":/" not in export:
            raise ValueError("must be HOST:/PATH")
        return export


class TemplateResult(Result):
    """What was written, and what to do with it."""

    kind: Kind = Field(description="How the cluster is made.")
    directory: Place = Field(description="Folder of the files.")
    files: tuple[Place, ...] = Field(description="The files.")
    fill_in: tuple[str, ...] = Field(description="What is still to be filled in: FILE:LINE: ...")
    next_steps: tuple[str, ...] = Field(description="Commands to go on with.")


def render(kind: Kind, values: ClusterValues, train: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the files for `kind`, by file name.

    Args:
        kind: How the cluster is created.
        values: What its files are made from.
        train: Options of `resnet-ops train` to train on it with, by their field names.

    Raises:
        UserError: A value means nothing to this kind, or does not go with another.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    _refuse_what_would_be_ignored(kind, values)
    environment = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # shell and YAML, not HTML; they have quoting of their own
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"sh": lambda value: shlex.quote(str(value)), "quoted": lambda value: json.dumps(str(value))}
    context = _context(kind, values) | {"train": train}
    return {file: environment.get_template(name).render(context) for file, name in FILES[kind].items()}


def write(kind: Kind, values: ClusterValues, train: Mapping[str, Any], directory: Path) -> TemplateResult:
    """Write the files that `render` returns into `directory`, which is created if need be.

    Raises:
        UserError: One of them is there already (nothing is written then), or cannot be written.
    """
    texts = render(kind, values, train)
    directory = directory.absolute()
    for name in texts:
        if (directory / name).exists():
            raise UserError(f"{directory / name} exists already.", "Choose another folder with -o, or remove it first.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (directory / name).open("x") as file:
                file.write(text)
            (directory / name).chmod(0o755 if text.startswith("#!") else 0o644)
    except OSError as error:
        raise UserError(
            f"{error.filename or directory} cannot be written: {error.strerror}.",
            "Choose another folder with -o.",
            WORK_FAILED,
        ) from None
    fill_in = tuple(
        f"{name}:{number}  {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if FILL_IN in line and not line.lstrip().startswith("#")
    )
    steps = _next_steps(kind, _context(kind, values), directory)
    return TemplateResult(
        kind=kind,
        directory=directory,
        files=tuple(directory / name for name in texts),
        fill_in=fill_in,
        next_steps=steps,
    )


def _template(name: str) -> str:
    return resources.files("resnet_ops.cluster").joinpath(*name.split("/")).read_text("utf-8")


def _refuse_what_would_be_ignored(kind: Kind, values: ClusterValues) -> None:
    for name, kinds in ONLY.items():
        if kind not in kinds and getattr(values, name) != ClusterValues.default(name):
            named = [known for known in get_args(Kind) if known in kinds]
            raise UserError(
                f"--{name.replace('_', '-')} does not apply to {kind}.", f"It applies to {', '.join(named)}."
            )


def _context(kind: Kind, values: ClusterValues) -> dict[str, Any]:
    """The values, and what follows from them."""
    shm_gib = values.shm_gib or values.memory_gib // 2
    region = values.region or REGIONS.get(kind, "")
    versions = {name: metadata.version(name).partition("+")[0] for name in ("resnet-ops", "ray", "torch")}
    seconds = int(values.time_limit[:-1]) * SECONDS[values.time_limit[-1]]
    storage = values.storage_path or ("$HOME/resnet-ops" if kind == "slurm" else "/mnt/resnet-ops")
    return {
        **values.model_dump(),
        "kind": kind,
        "versions": versions,
        "python_tag": "py" + "".join(platform.python_version_tuple()[:2]),
        "min_nodes": values.nodes.fewest,
        "max_nodes": values.nodes.most,
        "shm_gib": shm_gib,
        # Ray's object store lies in /dev/shm, and so do the batches that data loaders pass on.
        "object_store_bytes": shm_gib * 2**30 * 6 // 10,
        "image": values.image or f"resnet-ops:{versions['resnet-ops'].replace('+', '-')}",
        "image_to_push": values.image or f"{FILL_IN}-REGISTRY/resnet-ops:{versions['resnet-ops']}",
        "storage_path": storage,
        "environment": values.environment or Path(sys.prefix),
        "time_limit_s": seconds,
        "time_limit_minutes": max(1, seconds // 60),
        "region": region,
        "zone": values.zone or region + ("a" if kind == "aws" else "-a"),
        "instance_type": _instance_type(kind, values),
        "machine_image": values.machine_image or f"{FILL_IN}-MACHINE-IMAGE",
        "nfs_export": values.nfs_export or f"{FILL_IN}-HOST:/PATH",
        "project": values.project or f"{FILL_IN}-PROJECT",
    }


def _instance_type(kind: Kind, values: ClusterValues) -> str:
    known = INSTANCE_TYPES.get(kind)
    if values.instance_type or known is None:
        return values.instance_type or ""
    if values.gpus_per_node not in known:
        counts = ", ".join(map(str, known))
        raise UserError(
            f"No known {kind} machine type has {values.gpus_per_node} GPUs (known: {counts}).",
            "Set --instance-type.",
        )
    return known[values.gpus_per_node]


def _next_steps(kind: Kind, context: dict[str, Any], directory: Path) -> tuple[str, ...]:
    image = context["image_to_push"]
    build = f"docker build --tag {image} . && docker push {image}"
    enter = f"cd {shlex.quote(str(directory))}"
    wheel = "pip wheel --no-deps --wheel-dir . PATH_TO_RESNET_OPS  # unless that version is on a package index"
    steps = {
        "kuberay": f"""
            {enter}
            {wheel}
            {build}
            kubectl apply -f storage.yaml
            kubectl apply -f rayjob.yaml
            kubectl -n {context["namespace"]} get rayjob {context["name"]} --watch
        """,
        "slurm": f"""
            {enter}
            sbatch train.sbatch
            squeue --me
        """,
        "compose": f"""
            {enter}
            {wheel}
            mkdir -m 700 secrets && openssl rand -hex 32 > secrets/ray_token
            docker compose build
            docker compose up --detach --wait
            docker compose exec head bash /opt/resnet-ops/train.sh
        """,
    }
    cloud = f"""
        {enter}
        {wheel}
        {build}
        ray get-auth-token --generate > /dev/null
        ray up cluster.yaml
        ray exec cluster.yaml 'ray job submit --no-wait -- bash ~/train.sh'
        ray down cluster.yaml
    """
    return tuple(textwrap.dedent(steps.get(kind, cloud)).strip().splitlines())
