"""The result of an evaluation: what `--json` prints, and evaluation.json holds."""

from typing import Literal

from pydantic import Field

from resnet_ops.class_metrics import MajorityBaseline
from resnet_ops.data.dataset import SPLIT_NAMES, Split
from resnet_ops.files import Place
from resnet_ops.formatting import percent
from resnet_ops.reliability import CalibrationBin, ConfidenceLevel
from resnet_ops.results import Result
from resnet_ops.run_records import BadImage


class EvaluatedClass(Result):
    """The metrics of a class. Intervals are 95% confidence intervals (Wilson)."""

    name: str = Field(description="Name of the class.")
    images: int = Field(description="Images of the class: its support.")
    predicted: int = Field(description="Images that are classified as it.")
    correct: int = Field(description="Images of it that are.")
    recall: float | None = Field(description="Share of its images that are classified as it; null without images.")
    recall_low: float | None = Field(description="Lower end of the interval of the recall.")
    recall_high: float | None = Field(description="Upper end.")
    precision: float | None = Field(
        description="Share of the images classified as it that are of it; null where there are none."
    )
    precision_low: float | None = Field(description="Lower end of the interval of the precision.")
    precision_high: float | None = Field(description="Upper end.")
    f1: float | None = Field(
        description="Harmonic mean of the two; null where the class is neither there nor predicted."
    )


class Confusion(Result):
    """The number of images of one class that are classified as another."""

    label: str = Field(description="The true class.")
    prediction: str = Field(description="The predicted class.")
    images: int = Field(description="How many images.")


class ClassificationError(Result):
    """An image that is misclassified."""

    path: str = Field(description="The image.")
    label: str = Field(description="Its true class.")
    prediction: str = Field(description="The class that it is classified as.")
    probability: float = Field(description="The probability of that class.")
    label_probability: float = Field(description="The probability of the true class.")


class EvaluationMetrics(Result):
    """The metrics of a network on labeled images. Accuracies and the like are from 0 to 1."""

    images: int = Field(description="Images evaluated.")
    correct: int = Field(description="Images classified correctly.")
    top1: float = Field(description="Top-1 accuracy.")
    top1_low: float = Field(description="Lower end of its 95% confidence interval (Wilson).")
    top1_high: float = Field(description="Upper end.")
    top5: float | None = Field(description="Top-5 accuracy; null for 5 classes or fewer.")
    macro_recall: float = Field(description="Mean recall of the classes that have images: the balanced accuracy.")
    macro_precision: float = Field(
        description="Mean precision of the same classes; 0 for those that no image is classified as."
    )
    macro_f1: float = Field(description="Mean F1 of the same classes.")
    negative_log_likelihood: float = Field(description="Mean over images of -log of the true class's probability.")
    mean_confidence: float = Field(description="Mean probability of the most likely class.")
    expected_calibration_error: float = Field(
        description="Mean over images of |confidence - accuracy| in their bin, of 15 bins (Guo et al. 2017)."
    )
    classes: tuple[EvaluatedClass, ...] = Field(description="The metrics of each class, in the network's order.")
    confusions: tuple[Confusion, ...] = Field(
        description="All pairs of classes that are confused, the most frequent first: with `classes` the whole "
        "confusion matrix."
    )
    calibration: tuple[CalibrationBin, ...] = Field(description="The bins of the reliability diagram.")
    confidence: tuple[ConfidenceLevel, ...] = Field(description="Accuracy of the images of at least some confidence.")


class Expectation(Result):
    """The test of whether an accuracy is below an expected one by more than chance."""

    percent: float = Field(description="The expected top-1 accuracy, in percent.")
    p_value: float = Field(
        description="Probability of so few correct images, or fewer, if the accuracy is the expected one: one-sided "
        "exact binomial test."
    )
    met: bool = Field(description="Whether that is above 0.05.")


class EvaluateResult(EvaluationMetrics):
    """An evaluation of a network on labeled images."""

    name: str = Field(description="The run or file that is evaluated.")
    kind: Literal["run", "checkpoint", "weights", "onnx"] = Field(
        description="What it is; run: the selected weights of a run."
    )
    file: Place = Field(description="The file of the weights, or the ONNX file.")
    model: str = Field(description="Network, such as resnet20.")
    precision: str = Field(description="fp32, fp16 or int8.")
    device: str = Field(description="cpu or cuda; of an ONNX file ONNX Runtime's execution provider.")
    data: str = Field(description="Name of the dataset.")
    split: Split | None = Field(description="The part of it that is evaluated; null for all of it.")
    is_own_data: bool = Field(description="Whether it is the dataset that the network was trained on.")
    trained_on: int | None = Field(
        description="How many of these images the network was trained on; null where that is not known. Compared by "
        "their bytes, or by their paths where `seen` says so."
    )
    chose_epoch: int | None = Field(
        description="How many of them its epoch was chosen on; null where that is not known."
    )
    pretrained_on: int | None = Field(
        description="How many of them pretrained weights were trained or chosen on that its training began from, or "
        "these from, as far as is known; null where they were trained on the same images, and it is not known on "
        "which, or on images that are not at hand to compare."
    )
    fitted_temperature: bool = Field(
        description="Whether the temperature of an exported file was fitted on any of them, so that the calibration "
        "error is too low for others."
    )
    seen: str = Field(description="The same in words.")
    left_out: dict[str, int] = Field(
        description="Images left out, by their class, as the network does not have that class."
    )
    missing_classes: tuple[str, ...] = Field(description="Classes of the network without images.")
    bad_images: int = Field(description="Images left out as they cannot be decoded.")
    first_bad_images: tuple[BadImage, ...] = Field(description="The first of them.")
    mistakes: tuple[ClassificationError, ...] = Field(description="The most confident mistakes.")
    label_issues: int = Field(
        description="Images whose labels may be wrong: another class is the most likely one, with at least the "
        "mean probability that it has for the images labeled so (confident learning, Northcutt et al. 2021)."
    )
    suspects: tuple[ClassificationError, ...] = Field(
        description="The first `--suspects` of them, the least `label_probability - probability` first."
    )
    majority_baseline: MajorityBaseline | None = Field(
        description="What always answering the largest class of these images reaches; null where they are of one class."
    )
    expectation: Expectation | None = Field(description="What `--expect` asks for; null without it.")
    recorded: bool = Field(description="Whether the accuracy is recorded in the run as its test accuracy.")
    folder: Place = Field(description="The folder that is written.")
    page: Place = Field(description="The page in it.")
    predictions: Place = Field(
        description="The CSV with the five most likely classes of each image, and the probability of its label."
    )
    images_per_second: float = Field(description="Decoding included.")
    total_s: float = Field(description="Seconds from the request to this result.")

    @property
    def images_text(self) -> str:
        """The images in words: '1,200 test images of flowers'."""
        kind = f" {SPLIT_NAMES[self.split]}" if self.split else ""
        return f"{self.images:,}{kind} image{'' if self.images == 1 else 's'} of {self.data}"

    @property
    def network_text(self) -> str:
        """The network in words: 'resnet20 of run flowers'."""
        if self.kind in ("run", "checkpoint"):
            return f"{self.model} of {self.kind} {self.name}"
        return f"{self.model} of {self.name}" + ("" if self.precision == "fp32" else f" ({self.precision})")

    @property
    def verdict(self) -> str:
        """The accuracy in a sentence: on which images, and what training has seen of them."""
        baseline = self.majority_baseline
        warning = "" if baseline is None or baseline.beaten else f" That is {baseline.warning}"
        return (
            f"{self.network_text} classifies {percent(self.top1)} ({percent(self.top1_low)} to "
            f"{percent(self.top1_high)}) of {self.images_text} correctly; {self.seen}.{warning}"
        )

    @property
    def worst_classes(self) -> tuple[EvaluatedClass, ...]:
        """Classes that have images, the lowest recall first, of equal ones those with more images."""
        present = [each for each in self.classes if each.recall is not None]
        return tuple(sorted(present, key=lambda each: (each.recall, -each.images)))
