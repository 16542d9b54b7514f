"""What an export, a proof and the use of a file are: every option, as in `resnet_ops/config.py`."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from resnet_ops.files import Place
from resnet_ops.options import Config, Positive

RunsDir = Annotated[
    Place, Field(description="Folder that holds the runs, or a bucket: s3://bucket/folder, gs://bucket/folder.")
]
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
LARGEST_BATCH = 65_536


class ProofConfig(Config):
    """How a file is proven: where, on what, within which limits."""

    provider: Annotated[
        Provider,
        Field(description="ONNX Runtime's execution provider for the proof; auto is CUDA where there is a GPU."),
    ] = "auto"
    data: Annotated[
        str | None, Field(description="Images to validate on; by default those that the run was trained on.")
    ] = None
    images: Annotated[
        Positive | None,
        Field(description="Validate on so many images, evenly spread over the set; by default on all of them."),
    ] = None
    tolerance: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Largest |difference| of logits, as a share of the largest "
              "|logit|; by default as the precision and the provider have it."),
    ] = None  # fmt: skip
    max_accuracy_drop: Annotated[
        float,
        Field(ge=0, le=100, allow_inf_nan=False, description="Percentage points of validation accuracy that the file "
              "may have less than the checkpoint."),
    ] = 0.5  # fmt: skip
    runs_dir: RunsDir = Path("runs")


class ExportConfig(ProofConfig):
    """One export: of which weights, into what, proven how."""

    run: Annotated[
        str,
        Field(description="Name of the run, or path of its folder or of one of its checkpoints; or, with --model, a "
              "file of weights under torchvision's or timm's names."),
    ]  # fmt: skip
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        Field(description="Arithmetic of the file: fp16 is for GPUs, int8 (calibrated on training images) for CPUs."),
    ] = "fp32"
    input: Annotated[
        Literal["normalized", "raw"],
        Field(description="What the file takes: normalised floats (N, C, H, W), or pixels (N, H, W, C) of any size, "
              "which it resizes, crops and normalises itself."),
    ] = "normalized"  # fmt: skip
    softmax: Annotated[bool, Field(description="Have the file give probabilities instead of logits.")] = False
    opset: Annotated[int, Field(ge=18, le=23, description="ONNX operator set; PyTorch's exporter starts at 18.")] = 18
    out: Annotated[
        Path | None, Field(description="File to write; by default in the run's folder export/, model.onnx of fp32.")
    ] = None
    model: Annotated[
        str | None, Field(description="The network that a file of weights belongs to, such as resnet50.")
    ] = None
    classes: Annotated[
        Path | None, Field(description="File that names the classes of such weights, a line each, in their order.")
    ] = None
    image_size: Annotated[
        int | None, Field(ge=1, le=4096, description="Side of the images that such weights were trained on; by default "
                          "224, or 32 for a CIFAR network.")
    ] = None  # fmt: skip
    mean: Annotated[
        str | None,
        Field(description="Mean of the pixels of each channel, from 0 to 1, that such weights were trained with; by "
              "default ImageNet's, 0.485,0.456,0.406."),
    ] = None  # fmt: skip
    std: Annotated[str | None, Field(description="Standard deviation likewise; by default 0.229,0.224,0.225.")] = None

    @field_validator("mean", "std")
    @classmethod
    def _are_numbers(cls, typed: str | None) -> str | None:
        if typed is not None and not re.fullmatch(r"(\d*\.?\d+)(,\d*\.?\d+)*", typed):
            raise ValueError("must be a number for each channel, such as 0.485,0.456,0.406")
        return typed

    @field_validator("out")
    @classmethod
    def _is_onnx(cls, out: Path | None) -> Path | None:
        if out is not None and out.suffix != ".onnx":
            raise ValueError("must end in .onnx")
        return out


class ValidateConfig(ProofConfig):
    """One proof of a file that is there."""

    file: Annotated[Path, Field(description="ONNX file, made by `resnet-ops export`.")]
    checkpoint: Annotated[
        str | None,
        Field(description="Run or checkpoint that it was made of; by default looked for in the run that the file lies "
              "in, by its checksum."),
    ] = None  # fmt: skip


class UseConfig(Config):
    """What all who use a file need."""

    file: Annotated[Path, Field(description="ONNX file, made by `resnet-ops export`.")]
    provider: Annotated[
        Provider, Field(description="ONNX Runtime's execution provider; auto is CUDA where there is a GPU.")
    ] = "auto"


class PredictConfig(UseConfig):
    """Which images to look at, and what to tell of them."""

    images: Annotated[
        tuple[Path, ...],
        Field(min_length=1, description="Images, or folders that hold some at any depth."),
    ]
    top: Annotated[Positive, Field(description="Classes to name for each image, the likeliest first.")] = 1


class BenchConfig(UseConfig):
    """What is measured, and for how long."""

    batch: Annotated[str, Field(description="Batch sizes, such as 1,8,64.")] = "1,8,64"
    seconds: Annotated[
        float, Field(gt=0, le=3600, allow_inf_nan=False, description="Seconds to measure each, for each batch size.")
    ] = 2.0
    compile: Annotated[
        bool, Field(description="Measure torch.compile as well, which compiles up to a minute for each batch size.")
    ] = True

    @field_validator("batch")
    @classmethod
    def _are_sizes(cls, typed: str) -> str:
        if not all(size.isdecimal() and 1 <= int(size) <= LARGEST_BATCH for size in typed.split(",")):
            raise ValueError(f"must be batch sizes from 1 to {LARGEST_BATCH}, such as 1,8,64")
        return typed

    @property
    def batches(self) -> list[int]:
        """The batch sizes, each once."""
        return list(dict.fromkeys(map(int, self.batch.split(","))))
