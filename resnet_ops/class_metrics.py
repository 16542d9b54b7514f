"""What a network's answers say of each class: macro recall and F1, the worst classes, the majority baseline.

scikit-learn takes a second and 70 MiB to import (torchmetrics 6 s and 250 MiB), so only the worker that needs it does,
on a thread while it opens its images.
"""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from resnet_ops.config import Select
from resnet_ops.formatting import percent
from resnet_ops.significance import wilson_interval

if TYPE_CHECKING:
    import numpy as np

TOP = 5  # classes: with no more than these, each label is among the first
MOST_LISTED = 5  # of the worst classes
SELECT_NAMES: dict[Select, str] = {
    "top1": "accuracy",
    "macro-f1": "macro F1",
    "macro-recall": "macro recall",
    "loss": "loss",
}

ClassCount = tuple[int, int]  # images of a class that are classified correctly, and all of them


class ClassRecall(BaseModel):
    """The recall of a class: the share of its images that are classified correctly."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The class.")
    recall: float = Field(description="From 0 to 1.")
    support: int = Field(description="Images of the class.")
    interval: tuple[float, float] = Field(description="Wilson's 95% confidence interval of the recall.")


class MajorityBaseline(BaseModel):
    """The accuracy of always answering the largest class, and whether a network is better, beyond chance."""

    model_config = ConfigDict(frozen=True)

    accuracy: float = Field(description="Share of the images that are of the largest class, from 0 to 1.")
    beaten: bool = Field(
        description="Whether the whole 95% confidence interval (Wilson) of the network's accuracy is above that."
    )
    warning: str = Field(description="What to say and to do where it is not; empty where it is.")

    @classmethod
    def of(cls, counts: Sequence[ClassCount], remedy: str = "") -> "MajorityBaseline | None":
        """Return the baseline of a network on some images; None where fewer than two classes have images.

        Args:
            counts: Of each class; () where they are not known.
            remedy: What may help a network that is no better.
        """
        largest, images = max((support for _, support in counts), default=0), sum(support for _, support in counts)
        if largest == images:
            return None
        correct, accuracy = sum(correct for correct, _ in counts), largest / images
        answer = f"always answering one class ({percent(accuracy)})"
        beaten = wilson_interval(correct / images, images)[0] > accuracy
        warning = f"no better than {answer}. {remedy}"
        if correct > largest:
            warning = f"better than {answer} by no more than chance: {images:,} images are too few to tell. {remedy}"
        return cls(accuracy=accuracy, beaten=beaten, warning="" if beaten else warning.strip())


def metric_text(select: Select, metric: float) -> str:
    """Return a metric that `--select` names with its value: 'macro F1 91.20%', 'loss 0.1234'."""
    return f"{SELECT_NAMES[select]} {f'{metric:.4f}' if select == 'loss' else percent(metric)}"


def import_ahead() -> None:
    """Import scikit-learn on a thread of its own, to be there when it is needed."""
    threading.Thread(target=_import, name="scikit-learn").start()


def _import() -> None:
    import sklearn.metrics  # noqa: F401


def macro_scores(labels: "np.ndarray", predicted: "np.ndarray") -> tuple[float, float, float]:
    """Return macro precision, recall and F1, the means over all classes that have images.

    Args:
        labels: (N,) int, the class of each image; at least one.
        predicted: (N,) int, the class that it is taken for.
    """
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
    )
    return float(precision), float(recall), float(f1)


def worst_classes(class_names: Sequence[str], counts: Sequence[ClassCount]) -> tuple[ClassRecall, ...]:
    """Return the classes of the lowest recall, those alone that are below the accuracy on all images beyond chance.

    Args:
        class_names: Of all classes.
        counts: Of each class, in the same order; () where they are not known.
    """
    if not counts:
        return ()
    images = sum(support for _, support in counts)
    accuracy = sum(correct for correct, _ in counts) / max(images, 1)
    recalls = [
        ClassRecall(
            name=name, recall=correct / support, support=support, interval=wilson_interval(correct / support, support)
        )
        for name, (correct, support) in zip(class_names, counts, strict=True)
        if support
    ]
    below = [each for each in recalls if each.interval[1] < accuracy]
    return tuple(sorted(below, key=lambda each: (each.recall, -each.support))[:MOST_LISTED])
