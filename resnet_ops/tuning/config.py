"""What a search is: every option with its default, its limits and its one-line description, as in `config.py`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from resnet_ops.options import Config, Positive


class Trials(Config):
    """What many trainings beside each other have: room for each, and in `given` the options that they share."""

    cpus_per_trial: Annotated[
        Positive | None, Field(description="CPU cores of each trial; by default 1, which trains most networks an hour.")
    ] = None
    gpus_per_trial: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="GPUs of each trial, 0.25 for four trials on one; by default 1 "
              "where there are any."),
    ] = None  # fmt: skip
    max_concurrent: Annotated[
        Positive | None, Field(description="Most trials at once; by default as many as there is room for.")
    ] = None
    given: Annotated[dict[str, Any], Field(description="Options of train that all trials share.")] = {}  # noqa: RUF012

    @field_validator("gpus_per_trial")
    @classmethod
    def _gpus_are_whole_or_a_part_of_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a fraction of one GPU, such as 0.25, or a whole number")
        return gpus


class TuneConfig(Trials):
    """One search: what is varied, how it is searched, and where its trials run."""

    depths: Annotated[
        str, Field(description="Depths to search, such as 20,32,44,56,110; those of the CIFAR family unless the paper "
                   "has an ImageNet network of that depth.")
    ] = "8,14,20,32"  # fmt: skip
    family: Annotated[str, Field(description="Networks to search: resnet, plain, or resnet,plain.")] = "resnet"
    lr: Annotated[
        str, Field(description="Peak learning rates to search: a range MIN:MAX, or some of them, 0.05,0.1,0.2.")
    ] = "0.01:1"
    space: Annotated[
        Path | None,
        Field(description='TOML file with more of OPTION = value, list or "MIN:MAX"; those given beside it go first.'),
    ] = None
    trials: Annotated[
        Positive | None,
        Field(description="Networks to train; by default 12, or with --search grid every combination."),
    ] = None
    search: Annotated[
        Literal["random", "grid", "optuna"],
        Field(description="How the next trial is chosen: at random, each depth equally often; every combination, "
              "ranges in 5 steps; or by Optuna's TPE, from those before."),
    ] = "random"  # fmt: skip
    scheduler: Annotated[
        Literal["asha", "median", "pbt", "none"],
        Field(description="Which trials are stopped early: asha goes on with the better half after --grace epochs, and "
              "each time their number has doubled; median stops those below the others' median; pbt stops none, but "
              "has the worst quarter go on from the best's weights."),
    ] = "asha"  # fmt: skip
    grace: Annotated[
        Positive | None,
        Field(description="Epochs before a trial may be stopped, for deep networks start slowly; by default half of "
              "all, when one-cycle is well past its peak."),
    ] = None  # fmt: skip
    nodes_per_trial: Annotated[
        Positive, Field(description="Machines that each trial trains on; more than one makes each a Ray Train job.")
    ] = 1
    refit: Annotated[
        bool,
        Field(description="Then train the best network in full on training and validation images together, as run "
              "NAME-refit."),
    ] = False  # fmt: skip
