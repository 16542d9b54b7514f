"""Forward passes without training, and the metrics of their results.

Sums and answers of several workers are put together by the trainer.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ops.class_metrics import TOP, macro_scores
from resnet_ops.config import TrainConfig
from resnet_ops.training.mixed_precision import autocast


def compute_logits(network: nn.Module, x: Tensor, config: TrainConfig, device: torch.device) -> Tensor:
    """Return the logits (n, classes) float32 of images (n, C, H, W)."""
    if not config.channels_last:
        x = x.contiguous()
    with autocast(config.precision, device):
        logits: Tensor = network(x)
    return logits.float()


@dataclass(frozen=True)
class EvaluatedImages:
    """One worker's share of a split, evaluated.

    Args:
        totals: The sums of losses and of errors, and the number of images, (3,) float64.
        answers: Of each image label + 1, the class that it is taken for, and whether the label is among the first 5,
            (n, 3) int32.
        classes: Of the network; 0 where there are no images.
    """

    totals: Tensor
    answers: Tensor
    classes: int


@torch.no_grad()
def evaluate_batches(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    device: torch.device,
    beat: Callable[[], None],
) -> EvaluatedImages:
    """Evaluate a network on batches."""
    network.eval()
    totals, classes = torch.zeros(3, dtype=torch.float64, device=device), 0
    answers = [torch.empty(0, 3, dtype=torch.int32, device=device)]  # a rank may have no images
    for x, y in batches:
        beat()
        logits = compute_logits(network, x, config, device)
        loss_sum = F.cross_entropy(logits, y, reduction="sum")
        predicted, classes = logits.argmax(1), logits.shape[1]
        in_top = (logits.topk(min(TOP, classes)).indices == y[:, None]).any(1)
        answers.append(torch.stack((y + 1, predicted, in_top.long()), 1).int())
        totals[:2] += torch.stack((loss_sum, (predicted != y).sum()))
        totals[2] += len(y)
    return EvaluatedImages(totals, torch.cat(answers), classes)


def more_metrics(answers: Tensor, classes: int) -> tuple[float, float, float]:
    """Return top-5 error, macro recall and macro F1 of the answers (n, 3) of all workers; NaN where there is none."""
    label, predicted, in_top = answers[answers[:, 0] > 0].numpy().T
    if not len(label):
        return math.nan, math.nan, math.nan
    return float(1 - in_top.mean()) if classes > TOP else math.nan, *macro_scores(label - 1, predicted)[1:]


@dataclass(frozen=True)
class MeanLoss:
    """Mean loss and top-1 error over some images."""

    loss: float
    error: float

    @classmethod
    def of(cls, totals: Tensor, images: int) -> "MeanLoss":
        """Divide the sums of losses and of errors by the number of images."""
        loss, errors = (totals / max(images, 1)).tolist()
        return cls(loss, errors)

    @classmethod
    def of_evaluation(cls, totals: Tensor) -> "MeanLoss":
        """Divide `EvaluatedImages.totals` by the number of images."""
        return cls.of(totals[:2], int(totals[2]))


@dataclass(frozen=True)
class Validation(MeanLoss):
    """The metrics of the validation images, as `Epoch` has them."""

    top5_error: float | None
    macro_recall: float | None
    macro_f1: float | None
