"""The loss that is trained on: cross entropy with weights of classes and label smoothing, or focal loss.

Everything is a sum over images, so that shares of a batch and micro-batches add up to the whole batch. What validation
measures is cross entropy without any of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_ops.config import TrainConfig
from resnet_ops.recipe_config import parse_class_weights


@dataclass(frozen=True)
class Loss:
    """Maps logits and labels to the sum of their losses.

    Args:
        weights: Of the classes, (K,) float32 on the device; None where all count alike.
        label_smoothing: Share of each label that is spread over all classes.
        focal_gamma: Exponent of focal loss (Lin et al. 2017, for softmax): the term of each class is scaled by
            (1 - its probability) ** gamma; 0 is cross entropy.
    """

    weights: Tensor | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses, ().

        Args:
            logits: (n, K) float32.
            labels: (n,) int64, or shares of classes, (n, K) float32.
        """
        if not self.focal_gamma:
            return F.cross_entropy(logits, labels, self.weights, reduction="sum", label_smoothing=self.label_smoothing)
        if labels.dim() == 1:  # one_hot would wait for the device
            labels = (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
        shares = labels * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        log_p = F.log_softmax(logits, 1)
        # Not 0, whose power has an infinite slope below an exponent of 1.
        improbable = (-torch.expm1(log_p)).clamp_min(torch.finfo(logits.dtype).tiny)
        losses = -shares * improbable**self.focal_gamma * log_p
        return (losses if self.weights is None else losses * self.weights).sum()


def weigh_classes(config: TrainConfig, names: Sequence[str], labels: Tensor) -> Tensor | None:
    """Return the weights of the classes in the loss, (K,) float32, whose mean over the images trained on is 1.

    So over an epoch the mean loss is torch's weighted mean. Dividing each batch by the sum of its own weights, as torch
    does, would count the images of a rare class less where they are many by chance, and would not add up over workers.

    Args:
        config: Its `class_weights`, and its `sampler`, which decides how often images of each class are trained on.
        names: The names of the classes.
        labels: Those of the training images, (N,) int64.

    Returns:
        None where all classes count alike.
    """
    if config.class_weights in (None, "none"):
        return None
    counts = torch.bincount(labels.cpu(), minlength=len(names)).double()
    present = counts > 0
    if config.class_weights == "balanced":
        weights = torch.where(present, counts.sum() / (present.sum() * counts.clamp_min(1)), 1.0)
    else:
        given = parse_class_weights(str(config.class_weights))
        weights = torch.tensor([given.get(name, 1.0) for name in names], dtype=torch.float64)
    drawn = present.double() if config.sampler == "balanced" else counts
    return (weights / ((weights * drawn).sum() / drawn.sum())).float()
