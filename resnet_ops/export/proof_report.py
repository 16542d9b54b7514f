"""The results of a verification: single checks, the numbers of a file, and a draft that checks are added to.

Which checks there are is in `proof`.
"""

from collections.abc import Callable
from math import isnan, nan
from typing import Any, Self

from pydantic import ConfigDict, Field, PrivateAttr, computed_field

from resnet_ops.export import runtime
from resnet_ops.export.metadata import Input, ModelMetadata, Precision
from resnet_ops.files import Place
from resnet_ops.formatting import printable
from resnet_ops.results import Result


class ProofCheck(Result):
    """One check of a file."""

    name: str = Field(description="Name of the check.")
    result: str = Field(serialization_alias="found", description="Its result in words; in JSON `found`.")
    passed: bool = Field(serialization_alias="held", description="Whether it passed; in JSON `held`.")
    limit: str = Field(default="", description="The limit that it is held to, if there is one.")


class ProofReport(Result):
    """The checks of one file and their numbers. What could not be measured is NaN, in JSON null."""

    provider: str = Field(description="ONNX Runtime's execution provider, or OpenVINO or OpenCV.")
    tolerance: float = Field(default=nan, description="Largest max_rel_diff that passes.")
    checks: list[ProofCheck] = Field(default_factory=list, description="Each check: name, found, held, limit.")
    nodes_by_provider: dict[str, int] = Field(default_factory=dict, description="Number of nodes that each one ran.")
    black_box_only: str = Field(
        default="", description="Why structure or weights were not compared with the checkpoint's; empty if they were."
    )
    unverified: tuple[str, ...] = Field(
        default=(), description="What the file claims of its proof or its temperature that could not be verified here."
    )
    images: int = Field(default=0, description="Validation images that were used.")
    images_total: int = Field(default=0, description="Validation images that there are; with fewer, a sample was used.")
    images_fingerprint: str = Field(default="", description="Fingerprint of the dataset that they are of.")
    sample: str = Field(default="", description="Why a stratified sample was used; empty if all images were.")
    accuracy_margin: float = Field(
        default=nan, description="Half the 95% confidence interval of val_accuracy_onnx for a sample; 0 for all images."
    )
    largest_batch: int = Field(default=0, description="Largest batch that was tried.")
    max_abs_diff: float = Field(
        default=nan,
        description="Largest |difference| of logits, or of the logarithms of probabilities, on the validation images.",
    )
    max_rel_diff: float = Field(default=nan, description="The same as a share of the largest |logit|.")
    top1_agreement: float = Field(default=nan, description="Share of the images, 0 to 1, with the same top class.")
    val_accuracy_torch: float = Field(default=nan, description="Top-1 accuracy of the checkpoint, 0 to 1.")
    val_accuracy_onnx: float = Field(default=nan, description="Top-1 accuracy of the file, 0 to 1.")
    seen_accuracy_torch: float = Field(
        default=nan,
        description="Instead, of a network that is fitted on all images: on images that it has seen, to compare the "
        "file with the checkpoint and no more.",
    )
    seen_accuracy_onnx: float = Field(default=nan, description="The same of the file.")
    calibration_error_torch: float = Field(default=nan, description="Expected calibration error of the checkpoint.")
    calibration_error_onnx: float = Field(default=nan, description="Expected calibration error of the file.")

    @computed_field(description="Whether all checks passed.")  # type: ignore[prop-decorator]
    @property
    def validated(self) -> bool:
        """Return whether all checks passed."""
        return bool(self.checks) and not self.failed_checks

    @property
    def failed_checks(self) -> list[ProofCheck]:
        """Return the checks that failed."""
        return [check for check in self.checks if not check.passed]

    @property
    def has_seen_images(self) -> bool:
        """Return whether the network was trained on the images."""
        return not isnan(self.seen_accuracy_onnx) or not isnan(self.seen_accuracy_torch)

    @property
    def accuracy_torch(self) -> float:
        """Return the top-1 accuracy of the checkpoint, whether it has seen the images or not."""
        return self.seen_accuracy_torch if self.has_seen_images else self.val_accuracy_torch

    @property
    def accuracy_onnx(self) -> float:
        """Return the top-1 accuracy of the file, whether the network has seen the images or not."""
        return self.seen_accuracy_onnx if self.has_seen_images else self.val_accuracy_onnx

    def of_seen_images(self) -> "ProofReport":
        """Return the same without claims for other images, as the network was trained on these."""
        update = {
            "seen_accuracy_torch": self.val_accuracy_torch,
            "seen_accuracy_onnx": self.val_accuracy_onnx,
            **dict.fromkeys(
                ("val_accuracy_torch", "val_accuracy_onnx", "calibration_error_torch", "calibration_error_onnx"), nan
            ),
        }
        return ProofReport(**(dict(self) | update))

    def summary(self) -> dict[str, Any]:
        """Return the numbers that were measured, as the metadata of the file keeps them."""
        return {
            name: value for name, value in self.model_dump(exclude={"checks", "unverified"}).items() if value == value
        }


class ValidationResult(ProofReport):
    """The verification of a file on this machine; without its checkpoint, against its metadata alone."""

    onnx: Place = Field(description="The file.")
    precision: Precision = Field(description="fp32, fp16 or int8.")
    input: Input = Field(description="normalized: floats (N, C, H, W); raw: pixels (N, H, W, C) uint8 of any size.")
    checkpoint: Place | None = Field(description="The checkpoint that it was compared with.")
    total_s: float = Field(description="Seconds from the request to this result.")
    fitted_temperature: bool = Field(
        description="Whether the temperature of the file was fitted on these images, so that the calibration error is "
        "too low for others."
    )
    metadata: ModelMetadata = Field(exclude=True, description="The file's metadata.")

    @computed_field(description="Whether all checks passed on a GPU.")  # type: ignore[prop-decorator]
    @property
    def cuda_validated(self) -> bool:
        """Return whether all checks passed on a GPU."""
        return self.provider in (runtime.CUDA, runtime.TENSORRT) and self.validated


class ProofDraft(ProofReport):
    """A report to which checks are still added."""

    model_config = ConfigDict(frozen=False)
    _on_check: Callable[[str], object] = PrivateAttr(default_factory=lambda: lambda _: None)

    def announcing(self, on_check: Callable[[str], object]) -> Self:
        """Have `on_check` called with the name of each check before it runs; return this report."""
        self._on_check = on_check
        return self

    def announce(self, name: str) -> None:
        """Say which check runs now."""
        self._on_check(name)

    def add(self, name: str, result: str, passed: bool, limit: str = "") -> None:
        """Add the result of a check."""
        self.checks.append(ProofCheck(name=name, result=printable(result), passed=passed, limit=limit))

    def run(self, name: str, check: Callable[[], tuple[str, bool]], limit: str = "") -> None:
        """Run a check and add its result; one that raises has failed."""
        self.announce(name)
        try:
            result, passed = check()
        except Exception as error:  # ONNX and ONNX Runtime raise errors of any kind on a faulty file
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result, passed = lines[0][:300], False
        self.add(name, result, passed, limit)
