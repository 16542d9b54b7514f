"""The files of a study, its numbers, and its table. The numbers of the paper are in published.py.

A study's directory is that of a search, with more in it:

    runs/NAME/study.json             every number: one `StudyResult`
              table.md               the main numbers, with the verdict
              study.html             the same with the figures, as a page
              degradation.png/.svg   the figures; others for other studies
              norms.png/.svg         gradients and responses by layer
              trials/001/            each training's own run directory; layers.json is its layers

Nothing here imports torch or Ray.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from resnet_ops.formatting import image_size
from resnet_ops.results import Result
from resnet_ops.run_records import DataRecord, Epoch
from resnet_ops.study.config import Study
from resnet_ops.tuning.results import TrialStatus

NetworkKind = Literal["plain", "resnet", "baseline"]
# The kinds that are compared by depth, in words; baselines are listed only.
KINDS: dict[NetworkKind, str] = {"plain": "plain", "resnet": "residual"}


class Layer(BaseModel):
    """One convolution and its BatchNorm, whose output, before any non-linearity or addition, is the response.

    `of_shortcut` is, for the last layer of a residual branch, the response's standard deviation relative to the
    shortcut's. The gradients are L2 norms of those of the batch's mean loss.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    response_std: float  # over all images, channels and pixels
    response_rms: float
    weight_gradient: float
    response_gradient: float
    of_shortcut: float | None = None


class Layers(BaseModel):
    """All layers of one training in their order, without those of shortcuts."""

    model_config = ConfigDict(frozen=True)

    initial: tuple[Layer, ...]
    trained: tuple[Layer, ...]


class Network(BaseModel):
    """A training. Errors are top-1 from 0 to 1, after the last epoch; None if it was not reached."""

    model_config = ConfigDict(frozen=True)

    model: str
    depth: int
    kind: NetworkKind
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
    """A number over seeds. `std` is the sample standard deviation; None for one seed."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float | None
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), std=std, least=min(values), greatest=max(values))


@dataclass(frozen=True)
class NetworkGroup:
    """The trainings of one network, seed by seed: those that reached the end, and how many did not."""

    model: str
    kind: NetworkKind
    depth: int
    shortcut: str | None
    parameters: int
    networks: tuple[Network, ...]
    lost: int

    @cached_property
    def train_error(self) -> Spread:
        """The training error after the last epoch, on augmented images."""
        return Spread.of([n.train_error for n in self.networks if n.train_error is not None])

    @cached_property
    def val_error(self) -> Spread:
        """The validation error after the last epoch."""
        return Spread.of([n.val_error for n in self.networks if n.val_error is not None])


def group_networks(networks: Iterable[Network]) -> list[NetworkGroup]:
    """Group networks by kind, depth and shortcut, in that order; those without a finished training are left out."""
    by_key: dict[tuple[Any, ...], list[Network]] = {}
    for network in networks:
        key = get_args(NetworkKind).index(network.kind), network.depth, network.shortcut or ""
        by_key.setdefault(key, []).append(network)
    groups = []
    for _, members in sorted(by_key.items(), key=lambda pair: pair[0]):
        finished = tuple(n for n in members if n.status == "finished" and n.val_error is not None)
        lost = sum(n.status == "failed" for n in members)
        if finished:
            first = members[0]
            groups.append(
                NetworkGroup(
                    first.model, first.kind, first.depth, first.shortcut, finished[0].parameters, finished, lost
                )
            )
    return groups


class StudyRow(Result):
    """The numbers of a `NetworkGroup`, and the network's published error where it can be compared."""

    model: str = Field(description="Network, such as resnet20.")
    kind: NetworkKind
    depth: int = Field(description="Number of weighted layers.")
    shortcut: str | None = Field(description="A, B or C; of plain networks none.")
    parameters: int = Field(description="Number of parameters.")
    seeds: int = Field(description="Training runs that reached the last epoch.")
    lost: int = Field(description="Training runs that failed.")
    train_error: Spread = Field(description="Top-1 error after the last epoch, 0 to 1, over seeds, as augmented.")
    val_error: Spread = Field(description="Likewise on the validation images.")
    published_error: float | None = Field(default=None, description="Top-1 error in the paper, 0 to 1.")


class StudyResult(Result):
    """The content of study.json."""

    format: Literal[1] = 1
    name: str = Field(description="Name of the study.")
    study: Study
    status: Literal["finished", "unfinished"]
    run_dir: str = Field(description="Folder of the study.")
    data: DataRecord = Field(description="The dataset.")
    device: str = Field(description="cpu or cuda.")
    training: dict[str, Any] = Field(description="Options that all training runs share.")
    rows: list[StudyRow] = Field(description="The networks.")
    summary: str = Field(
        default="", description="The first three sentences of the verdict; those on failures come first."
    )
    verdict: str = Field(description="What the numbers show, in sentences.")
    gradients: str = Field(description="What the layers' gradient norms show, in sentences.")
    published: str | None = Field(description="Where the published numbers are from.")
    not_comparable: str | None = Field(
        description="Which networks cannot be compared with published numbers, and in what their training differs."
    )
    page: str = Field(default="", description="The page with the verdict, the table and the figures.")
    figures: list[str] = Field(description="Files of the figures.")
    networks: list[Network] = Field(description="The training runs, with their curves and layers.")
    versions: dict[str, str] = Field(description="Of Python and the libraries.")
    total_s: float = Field(description="Seconds from the request to this result.")


def to_markdown(result: StudyResult) -> str:
    """Return the content of table.md."""
    data = result.data
    settings = ", ".join(f"{name} {value}" for name, value in result.training.items() if name != "data")
    header = table_columns(result)
    lines = [
        f"# {result.name}",
        "",
        result.verdict,
        *(["", result.gradients] if result.gradients else []),
        "",
        f"On {data.name}, {data.train_images:,} training and {data.val_images:,} validation images of "
        f"{image_size(data.height, data.width)}: {settings}. Top-1 errors after the last epoch, mean ± sample standard "
        "deviation over seeds; training errors are measured on augmented images during the epoch.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'|'.join('---' if name in ('network', 'shortcuts') else '---:' for name in header)}|",
        *(f"| {' | '.join(table_cells(result, row))} |" for row in result.rows),
        "",
    ]
    if result.published:
        lines += [f"Published: {result.published}.", ""]
    if result.not_comparable:
        lines += [result.not_comparable, ""]
    return "\n".join(lines)


def table_columns(result: StudyResult) -> list[str]:
    """Return the columns of the table."""
    shortcuts = ["shortcuts"] if result.study == "shortcuts" else []
    published = ["published (%)"] if result.published else []
    return ["network", *shortcuts, "parameters", "seeds", "training error (%)", "validation error (%)", *published]


def table_cells(result: StudyResult, row: StudyRow) -> list[str]:
    """Return the cells of a network's row, one per column."""
    lost = f" ({row.lost} failed)" if row.lost else ""
    published = "" if row.published_error is None else f"{100 * row.published_error:.2f}"
    cells = {
        "network": row.model,
        "shortcuts": row.shortcut or "",
        "parameters": f"{row.parameters:,}",
        "seeds": f"{row.seeds}{lost}",
        "training error (%)": _percent_with_std(row.train_error),
        "validation error (%)": _percent_with_std(row.val_error),
        "published (%)": published,
    }
    return [cells[name] for name in table_columns(result)]


def _percent_with_std(spread: Spread) -> str:
    """Return a mean in percent, with its standard deviation if there are several seeds."""
    deviation = "" if spread.std is None else f" ± {100 * spread.std:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"
