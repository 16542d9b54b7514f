"""What a study found, as it lies in its directory: that of a search, with more in it.

    runs/NAME/study.json             every number: one `StudyResult`
              table.md               them in short, with the verdict
              degradation.png/.svg   the figures; others for other studies
              norms.png/.svg         gradients and responses by layer
              trials/001/            each training's own run directory; layers.json is its layers

Nothing here knows torch or Ray.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from resnet_ops.results import Result
from resnet_ops.runs import DataRecord, Epoch
from resnet_ops.study.config import Study
from resnet_ops.tuning.results import TrialStatus

Kind = Literal["plain", "resnet", "baseline"]
KINDS: dict[Kind, str] = {"plain": "plain", "resnet": "residual"}  # that are compared; baselines stand beside them


class Layer(BaseModel):
    """One convolution and its BatchNorm, whose output, before any non-linearity or addition, is the response.

    `of_shortcut` is, of a residual branch's last layer, the response's deviation as a share of the shortcut's. The
    gradients are L2 norms of those of the batch's mean loss.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    response_std: float  # over all images, channels and pixels
    response_rms: float
    weight_gradient: float
    response_gradient: float
    of_shortcut: float | None = None


class Layers(BaseModel):
    """All layers of one training in their order, shortcuts' own left out."""

    model_config = ConfigDict(frozen=True)

    initial: tuple[Layer, ...]
    trained: tuple[Layer, ...]


class Network(BaseModel):
    """One training. Errors are top-1 from 0 to 1, after the last epoch; None where it was never reached."""

    model_config = ConfigDict(frozen=True)

    model: str
    depth: int
    kind: Kind
    shortcut: str | None
    seed: int
    status: TrialStatus
    reason: str
    parameters: int
    seconds: float
    train_error: float | None
    val_error: float | None
    best_val_error: float | None  # of any epoch
    trial: str  # its run directory, below the study's
    curve: tuple[Epoch, ...]
    layers: Layers | None = None


class Spread(BaseModel):
    """A number over seeds. `std` is the sample's; None for one seed."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float | None
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value at least."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), std=std, least=min(values), greatest=max(values))


@dataclass(frozen=True)
class NetworkGroup:
    """The trainings of one network, seed by seed: those that reached the end, and how many did not."""

    model: str
    kind: Kind
    depth: int
    shortcut: str | None
    parameters: int
    networks: tuple[Network, ...]
    lost: int

    @cached_property
    def train_error(self) -> Spread:
        """After the last epoch, as augmented and while training."""
        return Spread.of([n.train_error for n in self.networks if n.train_error is not None])

    @cached_property
    def val_error(self) -> Spread:
        """After the last epoch."""
        return Spread.of([n.val_error for n in self.networks if n.val_error is not None])


def group_networks(networks: Iterable[Network]) -> list[NetworkGroup]:
    """Networks by kind, depth and shortcut, in that order; those of which no training is over are left out."""
    keys: dict[tuple[Any, ...], list[Network]] = {}
    for network in networks:
        keys.setdefault((get_args(Kind).index(network.kind), network.depth, network.shortcut or ""), []).append(network)
    groups = []
    for _, found in sorted(keys.items(), key=lambda pair: pair[0]):
        done = tuple(n for n in found if n.status == "finished" and n.val_error is not None)
        first = found[0]
        lost = sum(n.status == "failed" for n in found)
        if done:
            groups.append(
                NetworkGroup(first.model, first.kind, first.depth, first.shortcut, done[0].parameters, done, lost)
            )
    return groups


class StudyRow(Result):
    """A `NetworkGroup` in numbers, and what the paper published of the network, where it can be compared."""

    model: str = Field(description="Network, such as resnet20.")
    kind: Kind
    depth: int = Field(description="Number of weighted layers.")
    shortcut: str | None = Field(description="A, B or C; of plain networks none.")
    parameters: int = Field(description="Number of parameters.")
    seeds: int = Field(description="Trainings that reached the last epoch.")
    lost: int = Field(description="Trainings that failed.")
    train_error: Spread = Field(description="Top-1 error after the last epoch, 0 to 1, over seeds, as augmented.")
    val_error: Spread = Field(description="Likewise on the validation images.")
    published_error: float | None = Field(default=None, description="Top-1 error in the paper, 0 to 1.")


class StudyResult(Result):
    """study.json."""

    format: Literal[1] = 1
    name: str = Field(description="Name of the study.")
    study: Study
    status: Literal["finished", "unfinished"]
    run_dir: str = Field(description="Folder of the study.")
    data: DataRecord = Field(description="The data set.")
    device: str = Field(description="cpu or cuda.")
    training: dict[str, Any] = Field(description="Options that all trainings share.")
    rows: list[StudyRow] = Field(description="The networks.")
    verdict: str = Field(description="What the numbers show, in sentences.")
    gradients: str = Field(description="What the layers' gradient norms show, in sentences.")
    published: str | None = Field(description="Where the published numbers are from.")
    figures: list[str] = Field(description="Files of the figures.")
    networks: list[Network] = Field(description="The trainings, with their curves and layers.")
    versions: dict[str, str] = Field(description="Of Python and the libraries.")
    total_s: float = Field(description="Seconds from the request to this result.")
