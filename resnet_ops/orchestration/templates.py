"""Ready-to-edit files that create a Ray cluster and train on it: KubeRay, Slurm, `ray up` on a cloud, Compose.

They are rendered from the Jinja templates in cluster/, installed as resnet_ops.cluster, with `template_values` and
options of `resnet-ops train` that the caller gives. Nothing is started.
"""

import functools
import json
import platform
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.files import Place
from resnet_ops.orchestration.template_values import CPUS_PER_GPU, GIB_PER_GPU, KINDS_OF_OPTION, ClusterValues, Kind
from resnet_ops.results import Result

if TYPE_CHECKING:
    from jinja2 import Environment

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
        "prepare.py": "aws/prepare.py.j2",
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
# Machines by their number of GPUs (all of them L4): the type, its vCPUs and its memory in GiB.
INSTANCE_TYPES = {
    "aws": {
        0: ("m5.xlarge", 4, 16),
        1: ("g6.xlarge", 4, 16),
        4: ("g6.12xlarge", 48, 192),
        8: ("g6.48xlarge", 192, 768),
    },
    "gcp": {
        0: ("e2-standard-4", 4, 16),
        1: ("g2-standard-4", 4, 16),
        2: ("g2-standard-24", 24, 96),
        4: ("g2-standard-48", 48, 192),
        8: ("g2-standard-96", 96, 384),
    },
}
# Types of EC2 with an Elastic Fabric Adapter: docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa.html, those with GPUs.
EFA = re.compile(
    r"(p4d|p4de|p5|p5e|p5en|p6-b200|p6-b300)\..*|(g4dn|g5|g6|g6e)\.(8|12|16|24|48)xlarge|g4dn\.metal|p3dn\..*"
)
ECR = re.compile(r"(\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com)/.+")
ARTIFACT_REGISTRY = re.compile(r"([a-z0-9-]+-docker\.pkg\.dev|(?:[a-z]+\.)?gcr\.io)/.+")
REGIONS = {"aws": "us-west-2", "gcp": "us-west1"}
SECONDS = {"m": 60, "h": 3600, "d": 86400}


class TemplateResult(Result):
    """The files that were written, and what to do with them."""

    kind: Kind = Field(description="How the cluster is made.")
    directory: Place = Field(description="Folder of the files.")
    files: tuple[Place, ...] = Field(description="The files.")
    fill_in: tuple[str, ...] = Field(description="What is still to be filled in: FILE:LINE: ...")
    next_steps: tuple[str, ...] = Field(description="Commands to run next.")


def render(kind: Kind, values: ClusterValues, train: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the files for `kind`, by file name.

    Args:
        kind: How the cluster is created.
        values: What its files are made from.
        train: Options of `resnet-ops train` to train on it with, by their field names.

    Raises:
        UserError: A value means nothing to this kind, or does not go with another.
    """
    _refuse_ignored_options(kind, values)
    context = _context(kind, values) | {"train": train}
    return {file: _environment().get_template(name).render(context) for file, name in FILES[kind].items()}


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


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # shell and YAML, not HTML; quoted by filters
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"sh": lambda value: shlex.quote(str(value)), "quoted": lambda value: json.dumps(str(value))}
    return environment


def _template(name: str) -> str:
    return resources.files("resnet_ops.cluster").joinpath(*name.split("/")).read_text("utf-8")


def _refuse_ignored_options(kind: Kind, values: ClusterValues) -> None:
    for name, kinds in KINDS_OF_OPTION.items():
        if kind not in kinds and getattr(values, name) != ClusterValues.default(name):
            supported = [each for each in get_args(Kind) if each in kinds]
            raise UserError(
                f"--{name.replace('_', '-')} does not apply to {kind}.", f"It applies to {', '.join(supported)}."
            )


def _context(kind: Kind, values: ClusterValues) -> dict[str, Any]:
    """Return the variables of the templates: the values, and what follows from them."""
    instance_type, cpus, memory_gib = _machine(kind, values)
    shm_gib = values.shm_gib or memory_gib // 2
    if shm_gib >= memory_gib:
        raise UserError(f"--shm-gib {shm_gib} must be less than the node's memory, {memory_gib} GiB.", "")
    image = values.image or f"{FILL_IN}-REGISTRY/resnet-ops:{metadata.version('resnet-ops').partition('+')[0]}"
    ecr, artifact_registry = ECR.fullmatch(image), ARTIFACT_REGISTRY.fullmatch(image)
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
        "cpus_per_node": cpus,
        "memory_gib": memory_gib,
        "shm_gib": shm_gib,
        # /dev/shm holds Ray's object store, and the batches of data loaders.
        "object_store_bytes": shm_gib * 2**30 * 6 // 10,
        "image": values.image or f"resnet-ops:{versions['resnet-ops'].replace('+', '-')}",
        "image_to_push": image,
        "ecr": ecr[1] if ecr else None,
        "artifact_registry": artifact_registry[1] if artifact_registry else None,
        "storage_path": storage,
        "environment": values.environment or Path(sys.prefix),
        "time_limit_s": seconds,
        "time_limit_minutes": max(1, seconds // 60),
        "region": region,
        "zone": values.zone or region + ("a" if kind == "aws" else "-a"),
        "instance_type": instance_type,
        "efa": kind == "aws" and EFA.fullmatch(instance_type) is not None,
        "security_group": values.security_group or f"{FILL_IN}-SECURITY-GROUP",
        "subnet": values.subnet or f"{FILL_IN}-SUBNET",
        "ssh_cidr": values.ssh_cidr or f"{FILL_IN}-CIDR",
        "machine_image": values.machine_image or f"{FILL_IN}-MACHINE-IMAGE",
        "nfs_export": values.nfs_export or f"{FILL_IN}-HOST:/PATH",
        "project": values.project or f"{FILL_IN}-PROJECT",
    }


def _machine(kind: Kind, values: ClusterValues) -> tuple[str, int, int]:
    """Return the instance type of a node, '' where there are none, its CPU cores and its memory in GiB."""
    known = INSTANCE_TYPES.get(kind)
    gpus = values.gpus_per_node
    name, cpus, memory_gib = "", CPUS_PER_GPU * gpus or 4, GIB_PER_GPU * gpus or 16
    if values.instance_type:
        name = values.instance_type
    elif known is not None:
        if gpus not in known:
            counts = ", ".join(map(str, known))
            raise UserError(f"No known {kind} machine type has {gpus} GPUs (known: {counts}).", "Set --instance-type.")
        name, cpus, memory_gib = known[gpus]
    return name, values.cpus_per_node or cpus, values.memory_gib or memory_gib


def _next_steps(kind: Kind, context: dict[str, Any], directory: Path) -> tuple[str, ...]:
    image = context["image_to_push"]
    build = f"docker build --tag {image} . && docker push {image}"
    enter = f"cd {shlex.quote(str(directory))}"
    wheel = "pip wheel --no-deps --wheel-dir . PATH_TO_RESNET_OPS"
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
    login = {
        "aws": f"aws ecr get-login-password --region {context['region']} | docker login --username AWS "
        f"--password-stdin {context['ecr']}"
        if context["ecr"]
        else "",
        "gcp": f"gcloud auth configure-docker {context['artifact_registry']}" if context["artifact_registry"] else "",
    }.get(kind, "")
    prepare = {
        "aws": f"python prepare.py --ssh-cidr {context['ssh_cidr']}  # once; prints the security group",
        "gcp": f"gcloud compute firewall-rules update default-allow-ssh --source-ranges {context['ssh_cidr']}",
    }.get(kind, "")
    cloud = f"""
        {enter}
        {wheel}
        {login}
        {build}
        {prepare}
        (umask 077 && openssl rand -hex 32 > ray_token)
        ray up cluster.yaml
        ray exec cluster.yaml 'ray job submit --no-wait -- bash ~/train.sh'
        ray down cluster.yaml
    """
    return tuple(line for line in textwrap.dedent(steps.get(kind, cloud)).splitlines() if line.strip())
