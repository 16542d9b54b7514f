"""The options of export, validate, predict, diagnose and bench, as fields of configs.

Those of training are in `resnet_ops.config`, those of serve in `resnet_ops.serving.config`.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import field_validator, model_validator

from resnet_ops.config import RunsConfig
from resnet_ops.config_base import Config, ImageSize, Positive, option
from resnet_ops.errors import UserError

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Runtime = Literal["onnxruntime", "openvino", "opencv"]
LARGEST_BATCH = 65_536


class ProofConfig(RunsConfig):
    """The options of a verification: provider, images, limits."""

    provider: Annotated[
        Provider,
        option(
            "ONNX Runtime execution provider to verify with; auto: CUDA if there is a GPU, for int8 the CPU.",
            panel="Verification",
        ),
    ] = "auto"
    data: Annotated[
        str | None,
        option("Images to validate on; by default those that the run was trained on.", panel="Verification"),
    ] = None
    images: Annotated[
        Positive | None,
        option(
            "Validate on a stratified sample of this many images; by default on all, or as many as take a minute.",
            panel="Verification",
        ),
    ] = None
    tolerance: Annotated[
        float | None,
        option(
            "Largest difference of logits, relative to the largest logit; by default depends on precision and "
            "provider.",
            panel="Verification",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float,
        option(
            "Largest drop in validation accuracy compared to the checkpoint, in percentage points.",
            panel="Verification",
            ge=0,
            le=100,
            allow_inf_nan=False,
        ),
    ] = 0.5


class WeightsFileConfig(Config):
    """The options that describe a file of weights that were trained elsewhere."""

    model: Annotated[
        str | None,
        option(
            "Network of the weights, such as resnet50; by default told by the shapes of their tensors.",
            panel="Pretrained weights",
        ),
    ] = None
    classes: Annotated[
        Path | None,
        option(
            "File with the class names of such weights: one per line, in order, or JSON.", panel="Pretrained weights"
        ),
    ] = None
    image_size: Annotated[
        ImageSize | None,
        option(
            "Image size that such weights were trained with, 224 or 224x320; by default 224, or 32 for CIFAR networks.",
            panel="Pretrained weights",
            metavar="SIZE",
        ),
    ] = None
    resize: Annotated[
        ImageSize | None,
        option(
            "Size that images are resized to before the crop for such weights; by default that of their metadata, "
            "otherwise 256 for 224.",
            panel="Pretrained weights",
            metavar="SIZE",
        ),
    ] = None
    weights_key: Annotated[
        str | None,
        option("Key of such weights in a file that holds several, such as state_dict_ema.", panel="Pretrained weights"),
    ] = None
    mean: Annotated[
        str | None,
        option(
            "Normalization mean of each channel (0 to 1) of such weights; by default that of their metadata, otherwise "
            "ImageNet's, 0.485,0.456,0.406.",
            panel="Pretrained weights",
        ),
    ] = None
    std: Annotated[
        str | None,
        option(
            "Normalization standard deviation of each channel; by default of their metadata or 0.229,0.224,0.225.",
            panel="Pretrained weights",
        ),
    ] = None

    @field_validator("mean", "std")
    @classmethod
    def _are_numbers(cls, typed: str | None) -> str | None:
        if typed is not None and not re.fullmatch(r"(\d*\.?\d+)(,\d*\.?\d+)*", typed):
            raise ValueError("must be a number for each channel, such as 0.485,0.456,0.406")
        return typed


class ExportConfig(WeightsFileConfig, ProofConfig):
    """The options of an export and its verification."""

    run: Annotated[
        str,
        option(
            "Name of the run, or path of its folder or of one of its checkpoints; or weights with torchvision or "
            "timm names: a file, hf:owner/name, or with --model imagenet."
        ),
    ]
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        option(
            "Precision of the file: fp16 (half precision, for GPUs) or int8 (quantization calibrated on training "
            "images, for CPUs and TensorRT).",
            panel="Model",
        ),
    ] = "fp32"
    input: Annotated[
        Literal["normalized", "raw"],
        option(
            "Input of the file: normalized floats (N, C, H, W), or raw pixels (N, H, W, C) of any size, which the "
            "file resizes, crops and normalizes itself.",
            panel="Model",
        ),
    ] = "normalized"
    softmax: Annotated[bool, option("Output probabilities instead of logits.", panel="Model")] = False
    calibrate: Annotated[
        bool,
        option(
            "Temperature scaling: fit one factor of the logits on the validation images, so that probabilities are "
            "calibrated, and fold it into the weights.",
            panel="Model",
        ),
    ] = False
    opset: Annotated[
        int, option("ONNX opset version; 13 for older runtimes, such as TensorRT 8.", panel="Model", ge=13, le=23)
    ] = 18
    out: Annotated[
        Path | None,
        option("File to write; by default export/model.onnx (fp32) in the folder of the run.", panel="Model"),
    ] = None

    @field_validator("out")
    @classmethod
    def _is_onnx(cls, out: Path | None) -> Path | None:
        if out is not None and out.suffix != ".onnx":
            raise ValueError("must end in .onnx")
        return out


class ExportedFileConfig(RunsConfig):
    """The exported file, which `exported_files.with_exported_file` finds."""

    file: Annotated[Path, option("ONNX file made by `resnet-ops export`, or the run that it is of.")]


class ValidateConfig(ExportedFileConfig, ProofConfig):
    """The options of the verification of an existing file."""

    runtime: Annotated[
        Runtime,
        option(
            "Runtime to verify in; openvino and opencv compute on the CPU, and are installed by resnet-ops[openvino] "
            "and resnet-ops[opencv].",
            panel="Verification",
        ),
    ] = "onnxruntime"
    checkpoint: Annotated[
        str | None,
        option(
            "Run or checkpoint that the file was exported from; by default found by its checksum in the run that the "
            "file lies in.",
            panel="Verification",
        ),
    ] = None

    black_box: Annotated[
        bool,
        option(
            "Check outputs only, for files of other versions or programs; weights and structure are not verified.",
            panel="Verification",
        ),
    ] = False

    @model_validator(mode="after")
    def _runs_there(self) -> Self:
        if self.runtime != "onnxruntime" and self.provider not in ("auto", "cpu"):
            raise UserError(
                f"--provider {self.provider} belongs to ONNX Runtime; --runtime {self.runtime} computes on the CPU.",
                "Remove one of them.",
            )
        return self


class UseConfig(ExportedFileConfig):
    """The options that every use of an exported file has."""

    provider: Annotated[
        Provider, option("ONNX Runtime execution provider; auto: CUDA if there is a GPU, for int8 the CPU.")
    ] = "auto"


class PredictConfig(UseConfig):
    """The options of the classification of images."""

    images: Annotated[tuple[Path, ...], option("Images, or folders to search for images recursively.", min_length=1)]
    top: Annotated[Positive, option("Number of classes to return for each image (top-k).")] = 1
    output: Annotated[
        Path | None, option("Write the predictions to this file: .csv or .jsonl (JSON lines).", metavar="FILE")
    ] = None
    copy_to: Annotated[
        Path | None,
        option("Copy each image into a folder of its likeliest class within this new folder.", metavar="FOLDER"),
    ] = None

    @field_validator("output")
    @classmethod
    def _is_a_table(cls, output: Path | None) -> Path | None:
        if output is not None and output.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError("must end in .csv or .jsonl")
        return output


class DiagnoseConfig(UseConfig):
    """The options of the search for what explains another program's answers."""

    outputs: Annotated[
        Path | None,
        option(
            "CSV of your program's answers, required: a column `path`, and a class, or probabilities or logits in a "
            "column for each class."
        ),
    ] = None
    data: Annotated[
        str | None,
        option(
            "Folder of the images, labeled or not; by default the validation images of the run that the file is of."
        ),
    ] = None
    images: Annotated[Positive, option("Largest number of answers to compare, spread over all.")] = 200
    top: Annotated[Positive, option("Number of hypotheses to show.")] = 5

    @model_validator(mode="after")
    def _has_answers(self) -> Self:
        if self.outputs is None:
            raise UserError("No answers of your program are given.", "Add --outputs mine.csv.")
        return self


class BenchConfig(UseConfig):
    """The options of a benchmark."""

    batch: Annotated[str, option("Batch sizes, such as 1,8,64.")] = "1,8,64"
    seconds: Annotated[float, option("Seconds per measurement.", gt=0, le=3600, allow_inf_nan=False)] = 2.0
    compile: Annotated[
        bool, option("Also measure torch.compile, which takes up to a minute per batch size to compile.")
    ] = True

    @field_validator("batch")
    @classmethod
    def _are_sizes(cls, typed: str) -> str:
        if not all(size.isdecimal() and 1 <= int(size) <= LARGEST_BATCH for size in typed.split(",")):
            raise ValueError(f"must be batch sizes from 1 to {LARGEST_BATCH}, such as 1,8,64")
        return typed

    @property
    def batches(self) -> list[int]:
        """Return the batch sizes, each once."""
        return list(dict.fromkeys(map(int, self.batch.split(","))))
