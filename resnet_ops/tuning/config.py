"""The options of a search, each with its default, limits and one-line description, as in `resnet_ops.config`.

The values that are searched are parsed in `space`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from resnet_ops.cluster_config import JobConfig
from resnet_ops.config import TrainConfig
from resnet_ops.config_base import Positive, option


class TrialsConfig(JobConfig):
    """Many trainings in parallel: the resources of each, and in `given` the options of `train` that they share."""

    cpus_per_trial: Annotated[
        Positive | None,
        option("CPU cores per trial; by default 1, which trains the most networks per hour.", panel="Cluster"),
    ] = None
    gpus_per_trial: Annotated[
        float | None,
        option(
            "GPUs per trial; 0.25 runs four trials on one GPU. By default as many share a GPU as its memory and the "
            "CPU cores allow, up to 8.",
            panel="Cluster",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = None
    max_concurrent: Annotated[
        Positive | None,
        option("Maximum concurrent trials; by default as many as the cluster has resources for.", panel="Cluster"),
    ] = None
    given: Annotated[dict[str, Any], Field(description="Options of `train` that all trials share.")] = {}  # noqa: RUF012

    @field_validator("gpus_per_trial")
    @classmethod
    def _gpus_are_whole_or_a_part_of_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a fraction of one GPU, such as 0.25, or a whole number")
        return gpus

    @classmethod
    def changeable_on_resume(cls) -> frozenset[str]:
        """Return the options that may differ when a search is resumed, here or in train."""
        return super().changeable_on_resume() | TrainConfig.changeable_on_resume()

    @property
    def train_options(self) -> dict[str, Any]:
        """The options of train that all trials share: those in `given`, and those of where they run that were set."""
        return self.given | self.model_dump(include={*JobConfig.model_fields}, exclude_unset=True)


class TuneConfig(TrialsConfig):
    """A search: what is varied, how it is searched, and where its trials run."""

    depths: Annotated[
        str,
        option(
            "Depths to search, such as 20,32,44,56,110; CIFAR networks, except depths that the paper has an ImageNet "
            "network of. By default 18,34 for images of more than 64 pixels, on a GPU 50 as well.",
            panel="Search",
        ),
    ] = "8,14,20,32"
    family: Annotated[str, option("Networks to search: resnet, plain, or resnet,plain.", panel="Search")] = "resnet"
    lr: Annotated[
        str,
        option(
            "Peak learning rates to search: a range MIN:MAX, or a list, 0.05,0.1,0.2. By default less for "
            "smaller batches, with the recipe finetune 0.001:0.1, and of AdamW 0.0001:0.01.",
            panel="Search",
        ),
    ] = "0.01:1"
    space: Annotated[
        Path | None,
        option(
            'TOML file with more of the search space, as OPTION = value, list or "MIN:MAX"; command-line options '
            "override it.",
            panel="Search",
        ),
    ] = None
    trials: Annotated[
        Positive | None,
        option("Number of trials; by default 12, or with --search grid all combinations.", panel="Search"),
    ] = None
    search: Annotated[
        Literal["random", "grid", "optuna"],
        option(
            "Search algorithm: random (each depth equally often), grid (all combinations, 5 values per range) or "
            "optuna (TPE sampler).",
            panel="Search",
        ),
    ] = "random"
    scheduler: Annotated[
        Literal["asha", "median", "pbt", "none"],
        option(
            "Early stopping: asha (successive halving) keeps the better half after --grace epochs and each time that "
            "number doubles; median stops trials below the median; pbt (population based training) stops none, but "
            "restarts the worst quarter from the weights of the best.",
            panel="Search",
        ),
    ] = "asha"
    grace: Annotated[
        Positive | None,
        option(
            "Grace period: epochs before early stopping may stop a trial; by default half of --epochs, since deep "
            "networks start slowly. Where recipes of different lengths are searched, it is that of the longest.",
            panel="Search",
        ),
    ] = None
    nodes_per_trial: Annotated[
        Positive,
        option("Nodes per trial; with more than one, each trial is a distributed training.", panel="Cluster"),
    ] = 1
    refit: Annotated[
        bool,
        option(
            "Afterwards train the best network on training and validation images together, as run NAME-refit, which "
            "has no validation accuracy.",
            panel="Search",
        ),
    ] = False
