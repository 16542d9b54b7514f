"""The configuration of where work runs: the Ray cluster, its nodes, and how much of them is used.

Orchestration takes these and knows no larger ones; what runs there is configured in config.py and in the rooms' own.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic_core import core_schema

from resnet_ops.config_base import Config, Positive, option


@dataclass(frozen=True)
class NodeRange:
    """The minimum and maximum number of nodes, written as `4` or `2:4`, which fields accept as text."""

    fewest: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `4` or `2:4`.

        Raises:
            ValueError: It is neither a number of nodes nor a range with its smaller number first.
        """
        match = re.fullmatch(r"([1-9]\d{0,5})(?::([1-9]\d{0,5}))?", text)
        if match is None:
            raise ValueError("must be a number of nodes, such as 4, or a range, such as 2:4")
        fewest, most = int(match[1]), int(match[2] or match[1])
        if most < fewest:
            raise ValueError("must have the smaller number first, such as 2:4")
        return cls(fewest, most)

    def __str__(self) -> str:
        return str(self.fewest) if self.fewest == self.most else f"{self.fewest}:{self.most}"

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> core_schema.CoreSchema:
        """Validate from a string, and write it back as one."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value)),
            serialization=core_schema.to_string_ser_schema(),
        )


class ConnectionConfig(Config):
    """The Ray cluster to run on."""

    cluster: Annotated[
        str | None,
        option(
            "Ray cluster: local (started for this run), auto (RAY_ADDRESS, or the one running on this machine), an "
            "address, or http://HEAD:8265 to submit a job (not for serve). By default local, but auto if RAY_ADDRESS "
            "is set or --nodes needs more than this machine.",
            panel="Cluster",
            changeable=True,
        ),
    ] = None


class JobConfig(ConnectionConfig):
    """The options of any job on a cluster: its device, and its patience when nodes are missing or fail."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        option("Device to train on; auto: GPUs if there are any.", panel="Cluster", changeable=True),
    ] = "auto"
    wait: Annotated[
        float | None,
        option(
            "Seconds to wait for missing or busy nodes at the start (by default 600 if an autoscaler can add "
            "them, else 0) and after a failure (by default 600), and for a run that another process holds (by "
            "default 0).",
            advanced="cluster",
            changeable=True,
            ge=0,
            allow_inf_nan=False,
        ),
    ] = None
    max_failures: Annotated[
        int,
        option("Failed workers and nodes to recover from before giving up.", advanced="cluster", changeable=True, ge=0),
    ] = 3


class ClusterConfig(JobConfig):
    """The nodes of one training run, and the workers, GPUs and cores used on each."""

    nodes: Annotated[
        NodeRange,
        option(
            "Number of nodes; MIN:MAX starts with MIN and scales up to MAX as nodes come and go.",
            panel="Cluster",
            metavar="N or MIN:MAX",
            changeable=True,
        ),
    ] = NodeRange(1, 1)
    gpus_per_node: Annotated[
        Positive | None,
        option("GPUs per node, one worker each; by default all.", panel="Cluster", changeable=True),
    ] = None
    workers_per_node: Annotated[
        Positive | None,
        option("Workers per node when training on CPUs.", advanced="cluster", changeable=True),
    ] = None
    cpus_per_worker: Annotated[
        Positive | None,
        option("CPU cores per worker; by default its share of the node's cores.", advanced="cluster", changeable=True),
    ] = None
    hang_timeout: Annotated[
        float,
        option(
            "Seconds without progress after which hanging workers are restarted.",
            advanced="cluster",
            changeable=True,
            gt=0,
            allow_inf_nan=False,
        ),
    ] = 600
