"""Ready-to-edit files that create a Ray cluster and train on it: KubeRay, Slurm, `ray up` on a cloud, Compose.

They are rendered from the Jinja templates in cluster/, installed as resnet_ops.cluster, with `template_values` and
options of `resnet-ops train` that the caller gives. Nothing is started.
"""

import json
import platform
import shlex
import sys
import textwrap
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.files import Place
from resnet_ops.orchestration.template_values import KINDS_OF_OPTION, ClusterValues, Kind
from resnet_ops.results import Result

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
# Machines by their number of GPUs (all of them L4). The first two have 4 vCPUs and 16 GiB, the defaults below.
INSTANCE_TYPES = {
    "aws": {0: "m5.xlarge", 1: "g6.xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
    "gcp": {0: "e2-standard-4", 1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
}
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
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    _refuse_ignored_options(kind, values)
    environment = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # shell and YAML, not HTML; quoted by filters
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


def _refuse_ignored_options(kind: Kind, values: ClusterValues) -> None:
    for name, kinds in KINDS_OF_OPTION.items():
        if kind not in kinds and getattr(values, name) != ClusterValues.default(name):
            supported = [each for each in get_args(Kind) if each in kinds]
            raise UserError(
                f"--{name.replace('_', '-')} does not apply to {kind}.", f"It applies to {', '.join(supported)}."
            )


def _context(kind: Kind, values: ClusterValues) -> dict[str, Any]:
    """Return the variables of the templates: the values, and what follows from them."""
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
        # /dev/shm holds Ray's object store, and the batches of data loaders.
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
    cloud = f"""
        {enter}
        {wheel}
        {build}
        (umask 077 && ray get-auth-token --generate > /dev/null)
        ray up cluster.yaml
        ray exec cluster.yaml 'ray job submit --no-wait -- bash ~/train.sh'
        ray down cluster.yaml
    """
    return tuple(textwrap.dedent(steps.get(kind, cloud)).strip().splitlines())
