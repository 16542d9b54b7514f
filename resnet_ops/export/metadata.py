"""The metadata of an exported file, all that is needed to use it, and how it is stored in ONNX metadata properties.

Each field is a property of its own name: text as it is, all else as JSON. Reading files is in `untrusted`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from resnet_ops.config import Select
from resnet_ops.data.decode import CropSpec
from resnet_ops.errors import UserError
from resnet_ops.formatting import is_one_line, printable
from resnet_ops.run_records import BeganFrom, HeldOutRecord

if TYPE_CHECKING:  # it brings torch, which the gateway and the replicas of a server do without
    from resnet_ops.training.checkpoint import CheckpointInfo

Input = Literal["normalized", "raw"]
Precision = Literal["fp32", "fp16", "int8"]
Output = Literal["logits", "probabilities"]
Side = Annotated[int, Field(ge=1, le=4096)]
IMAGES = "images"  # the name of the input
MAX_CLASSES = 1_000_000  # a guard: more of them than anybody has
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MAX_CHARACTERS = 2**26  # of all properties together, likewise
Text = Annotated[str, Field(max_length=4096)]  # as long as a path may be
JSON_FIELDS = {
    "class_names",
    "preprocessing",
    "epoch",
    "val_accuracy",
    "held_out",
    "fitted_on_all",
    "began_from",
    "quantization_error",
    "calibration",
    "validation",
}


class Preprocessing(BaseModel):
    """The steps from raw pixels to the input of the network.

    An image is resized, as little as makes it cover `resize` (height, width), antialiased bilinear; `height` x `width`
    are cut from its center; then (pixel * scale - mean) / std. `layout` and `dtype` are those of the file's input: NCHW
    float32 where the caller does all that, NHWC uint8 of any size where the file does it. Before all that, values of
    16-bit images, if there were such in training, become 8 bits: value / (2^`bit_depth` - 1) * 255, rounded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    color: Literal["grey", "RGB"]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    resize: tuple[Side, Side]
    height: Side
    width: Side
    bit_depth: Annotated[int, Field(ge=8, le=16)] | None = None
    scale: FiniteFloat = 1 / 255
    mean: tuple[FiniteFloat, ...]
    std: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> "Preprocessing":
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError("mean and std do not match its channels")
        if self.resize[0] < self.height or self.resize[1] < self.width:
            raise ValueError("it is resized to less than the crop")
        return self

    @property
    def channels(self) -> int:
        """Return 1 for grey, 3 for RGB."""
        return 1 if self.color == "grey" else 3

    @property
    def crop(self) -> CropSpec:
        """Return how images are resized and cropped when they are decoded."""
        return CropSpec(self.resize, self.height, self.width, self.channels, bit_depth=self.bit_depth or 16)

    @property
    def crop_offset(self) -> tuple[int, int]:
        """Return top and left of the center crop of an image of size `resize`, rounded as torchvision's CenterCrop."""
        return round((self.resize[0] - self.height) / 2), round((self.resize[1] - self.width) / 2)

    @classmethod
    def of(cls, info: "CheckpointInfo", input_format: Input) -> "Preprocessing":
        """Return the preprocessing for the network of a checkpoint, in a file with this input."""
        raw = input_format == "raw"
        return cls(
            color="grey" if info.channels == 1 else "RGB",
            layout="NHWC" if raw else "NCHW",
            dtype="uint8" if raw else "float32",
            resize=info.stored or (info.height, info.width),
            height=info.height,
            width=info.width,
            bit_depth=info.bit_depth,
            mean=info.mean,
            std=info.std,
        )


class QuantizationError(BaseModel):
    """The error of an int8 quantization to fp32, measured at export on training images that it was not calibrated on.

    `mean` and `largest` are |difference| / max |logit|, `agreement` is the share of images with the same top class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Annotated[FiniteFloat, Field(ge=0)]
    largest: Annotated[FiniteFloat, Field(ge=0)]
    agreement: Annotated[FiniteFloat, Field(ge=0, le=1)]
    images: Annotated[int, Field(ge=1)]


class Calibration(BaseModel):
    """Temperature scaling: logits are divided by `temperature`, which was fitted on so many validation images.

    They are a stratified sample; those that cannot be decoded are counted, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[FiniteFloat, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
    images: Annotated[int, Field(ge=1)]


class ModelMetadata(BaseModel):
    """The metadata of an exported file. `validation` is the summary of its verification, None before.

    `val_accuracy` is that of the best epoch, on the images that it was selected on by the metric `selected_by`; None
    where the network is `fitted_on_all` images. `held_out` says which those images are, where the data has none for it.
    `began_from` says which weights the training began from, and what these were trained on.
    """

    model_config = ConfigDict(frozen=True)

    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    preprocessing: Preprocessing
    input: Input = "normalized"
    output: Output = "logits"
    precision: Precision = "fp32"
    model: Text
    shortcut: Text | None = None
    data: Text
    data_fingerprint: Text
    run: Text | None = None
    epoch: int
    val_accuracy: float | None = None
    selected_by: Select | None = None
    held_out: HeldOutRecord | None = None
    fitted_on_all: bool = False
    began_from: BeganFrom = None
    checkpoint_sha256: Text
    made_by: Text
    precision_choice: Text | None = None
    quantization_error: QuantizationError | None = None
    calibration: Calibration | None = None
    validation: dict[str, Any] | None = None

    @classmethod
    def of(cls, info: "CheckpointInfo", sha256: str, run: str | None, **file: Any) -> "ModelMetadata":
        """Return the metadata of a file that is exported from a checkpoint.

        Args:
            info: The checkpoint's description.
            sha256: The checkpoint's checksum.
            run: The name of the run that it belongs to.
            file: What depends on the options of the export: input, output, precision...
        """
        val_accuracy = info.metrics.val_accuracy if info.metrics else None
        return cls(
            class_names=info.class_names,
            preprocessing=Preprocessing.of(info, file.get("input", "normalized")),
            model=info.model,
            shortcut=info.shortcut,
            data=info.data,
            data_fingerprint=info.data_fingerprint,
            run=run,
            epoch=info.epoch,
            val_accuracy=val_accuracy,
            selected_by=None if val_accuracy is None else info.select,
            held_out=info.held_out,
            fitted_on_all=info.fitted_on_all,
            began_from=info.began_from,
            checkpoint_sha256=sha256,
            **file,
        )

    @classmethod
    def parse(cls, file_name: str, properties: Mapping[str, str]) -> "ModelMetadata":
        """Parse the metadata properties of a file.

        Raises:
            UserError: Something is missing or invalid.
        """
        if "class_names" not in properties:
            raise UserError(
                f"{file_name} has no class names in its metadata.", "Use a file made by `resnet-ops export`."
            )
        values: dict[str, Any] = {}
        try:
            if sum(map(len, properties.values())) > MAX_CHARACTERS:
                raise ValueError("they are too long")
            for field in cls.model_fields.keys() & properties.keys():
                values[field] = json.loads(properties[field]) if field in JSON_FIELDS else properties[field]
                # Of names that are there twice, programs differ in which they take.
                if field in JSON_FIELDS and json.dumps(values[field]) != properties[field]:
                    raise ValueError(f"{field}: not JSON as `export` writes it")
            # Strict: what is a number or true for one program is not for another.
            metadata = cls.model_validate_json(json.dumps(values), strict=True)
            for text in (*metadata.class_names, *(each for _, each in metadata if isinstance(each, str))):
                if not is_one_line(text):
                    raise ValueError(
                        f"'{printable(text[:60])}' has characters that separate lines or command a terminal"
                    )
            return metadata
        except (ValidationError, ValueError, RecursionError) as error:
            detail = str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(
                f"The metadata of {file_name} is invalid ({' '.join(detail.split())[:200]}).",
                "Use an intact file made by `resnet-ops export`.",
            ) from None

    def properties(self) -> dict[str, str]:
        """Return the metadata properties that `parse` reads."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {name: json.dumps(value) if name in JSON_FIELDS else str(value) for name, value in values.items()}
