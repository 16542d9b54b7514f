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

from resnet_ops.config import TrainConfig
from resnet_ops.records import DataRecord, Epoch
from resnet_ops.results import Result
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


# Test error on CIFAR-10, table 6; of ResNet-110 the mean of five. Plain networks are drawn only (fig. 6): plain-110
# stays above 60 %.
TABLE_6 = {
    "resnet20": 0.0875, "resnet32": 0.0751, "resnet44": 0.0717, "resnet56": 0.0697, "resnet110": 0.0661,
    "resnet1202": 0.0793,
}  # fmt: skip
# Top-1 error on ImageNet's validation images, 10-crop, tables 2 and 3; by network and shortcut.
TABLE_2 = {"plain18": 0.2794, "resnet18": 0.2788, "plain34": 0.2854, "resnet34": 0.2503}
TABLE_3 = {"A": 0.2503, "B": 0.2452, "C": 0.2419}
CIFAR_10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
IMAGENET = (1000, 50_000)  # classes and validation images


@dataclass(frozen=True)
class Published:
    """Errors from 0 to 1 by network, or by network and shortcut, and where they are from."""

    source: str
    errors: dict[tuple[str, str | None], float]

    def error(self, model: str, shortcut: str | None) -> float | None:
        """What was published of a network with these shortcuts (None for a plain one)."""
        return self.errors.get((model, shortcut))


def published(data: DataRecord, config: TrainConfig) -> Published | None:
    """The numbers that trainings like these can be put beside; None where images or recipe are not the paper's."""
    if _is_cifar10(data) and config.recipe == "paper" and _as_recipe(config, epochs=164, batch_size=128):
        errors: dict[tuple[str, str | None], float] = {(model, "A"): error for model, error in TABLE_6.items()}
        return Published(
            "He et al. 2015, table 6, test error; plain networks appear only in fig. 6, plain110 above 60%",
            errors,
        )
    if (len(data.class_names), data.val_images) == IMAGENET and _as_recipe(config, epochs=90, batch_size=256):
        errors = {("resnet34", shortcut): error for shortcut, error in TABLE_3.items()}
        errors |= {("plain18", None): TABLE_2["plain18"], ("plain34", None): TABLE_2["plain34"]}
        errors[("resnet18", "A")] = TABLE_2["resnet18"]
        return Published(
            "He et al. 2015, tables 2 and 3: 10-crop testing; here a single crop and different augmentation", errors
        )
    return None


def _is_cifar10(data: DataRecord) -> bool:
    return set(data.class_names) == CIFAR_10 and data.val_images == 10_000 and not data.stored and data.height == 32


def _as_recipe(config: TrainConfig, epochs: int, batch_size: int) -> bool:
    """Whether what makes the recipe is as the paper has it, or, of epochs, no less."""
    steps = (config.schedule, config.lr, config.lr_decay, config.momentum, config.weight_decay)
    return config.epochs >= epochs and config.batch_size == batch_size and steps == ("steps", 0.1, 0.1, 0.9, 1e-4)


def markdown(findings: StudyResult) -> str:
    """The whole of table.md."""
    data = findings.data
    settings = ", ".join(f"{name} {value}" for name, value in findings.training.items() if name != "data")
    heads = columns(findings)
    lines = [
        f"# {findings.name}",
        "",
        findings.verdict,
        *(["", findings.gradients] if findings.gradients else []),
        "",
        f"On {data.name}, {data.train_images:,} training and {data.val_images:,} validation images of "
        f"{data.width}x{data.height}: {settings}. Top-1 errors after the last epoch, mean ± sample standard deviation "
        "over seeds; training errors are measured on augmented images during the epoch.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'|'.join('---' if name in ('network', 'shortcuts') else '---:' for name in heads)}|",
        *(f"| {' | '.join(cells(findings, row))} |" for row in findings.rows),
        "",
    ]
    if findings.published:
        lines += [f"Published: {findings.published}.", ""]
    return "\n".join(lines)


def columns(findings: StudyResult) -> list[str]:
    """What the table has of each network."""
    shortcuts = ["shortcuts"] if findings.study == "shortcuts" else []
    published = ["published (%)"] if findings.published else []
    return ["network", *shortcuts, "parameters", "seeds", "training error (%)", "validation error (%)", *published]


def cells(findings: StudyResult, row: StudyRow) -> list[str]:
    """The same of one network."""
    lost = f" ({row.lost} failed)" if row.lost else ""
    published = "" if row.published_error is None else f"{100 * row.published_error:.2f}"
    every = {
        "network": row.model,
        "shortcuts": row.shortcut or "",
        "parameters": f"{row.parameters:,}",
        "seeds": f"{row.seeds}{lost}",
        "training error (%)": _error(row.train_error),
        "validation error (%)": _error(row.val_error),
        "published (%)": published,
    }
    return [every[name] for name in columns(findings)]


def _error(spread: Spread) -> str:
    """A mean in percent, with its deviation where there are seeds."""
    deviation = "" if spread.std is None else f" ± {100 * spread.std:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"
