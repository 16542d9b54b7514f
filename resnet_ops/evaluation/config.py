"""The options of evaluate, as fields of a config."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import model_validator

from resnet_ops.config import RunsConfig
from resnet_ops.config_base import Percent, option
from resnet_ops.errors import UserError
from resnet_ops.export.config import Provider, WeightsFileConfig
from resnet_ops.files import Place


class EvaluateConfig(WeightsFileConfig, RunsConfig):
    """The options of an evaluation: the network, the images, what is expected."""

    run: Annotated[
        str,
        option(
            "Name of the run, or path of its folder or of one of its checkpoints; an ONNX file made by `resnet-ops "
            "export`; or a file of weights."
        ),
    ]
    data: Annotated[
        str | None,
        option(
            "Labeled images to evaluate on, as `resnet-ops train` takes them; by default those that the network was "
            "trained on.",
            panel="Images",
        ),
    ] = None
    split: Annotated[
        Literal["train", "val", "test"] | None,
        option(
            "Which of them; by default the test images, or where there are none the validation images, or else all.",
            panel="Images",
        ),
    ] = None
    image_column: Annotated[
        str | None, option("Parquet column of the images; by default image or img.", panel="Images")
    ] = None
    label_column: Annotated[
        str | None, option("Parquet column of the labels; by default label, labels or fine_label.", panel="Images")
    ] = None
    data_root: Annotated[
        Path | None,
        option("Folder that holds cifar10 and cifar100, or to download them to; by default the cache.", panel="Images"),
    ] = None
    expect: Annotated[
        Percent | None,
        option(
            "Exit with 1 if the top-1 accuracy is below this many percent by more than chance (one-sided exact "
            "binomial test, p <= 0.05).",
            metavar="PERCENT",
            ge=0,
            le=100,
            allow_inf_nan=False,
        ),
    ] = None
    suspects: Annotated[
        int,
        option(
            "Show this many images whose labels may be wrong: those whose label the network finds least likely, "
            "while it is confident of another class.",
            metavar="N",
            ge=0,
        ),
    ] = 0
    provider: Annotated[Provider, option("ONNX Runtime execution provider of an ONNX file; auto: CUDA if there is a "
                                         "GPU, for int8 the CPU. Other networks run in torch, on a GPU if there is "
                                         "one.")] = "auto"  # fmt: skip
    output: Annotated[
        Place | None,
        option(
            "Folder to write, replaced if it is an evaluation; by default evaluation-SPLIT in the folder of the run, "
            "or beside the file.",
            metavar="PATH",
        ),
    ] = None

    @property
    def is_onnx(self) -> bool:
        """Return whether an exported file is evaluated."""
        return self.run.endswith(".onnx")

    @model_validator(mode="after")
    def _options_belong_to_the_network(self) -> Self:
        if self.provider != "auto" and not self.is_onnx:
            raise UserError(f"--provider {self.provider} belongs to ONNX files, and {self.run} is none.", "Remove it.")
        if self.is_onnx and self.model is not None:
            raise UserError(f"{self.run} is an ONNX file, which says itself which network it is.", "Remove --model.")
        return self
