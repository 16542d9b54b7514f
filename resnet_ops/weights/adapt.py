"""Fit weights to other images: a head for other classes is left to be drawn anew, grey images fold the first layer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from resnet_ops.errors import UserError
from resnet_ops.models import head_of
from resnet_ops.weights.pretrained import PretrainedWeights, WeightsInfo
from resnet_ops.weights.weights_metadata import WeightsPreprocessing

Head = Literal["kept", "new"]


def choose_head(
    info: WeightsInfo, class_names: Sequence[str], data_fingerprint: str, *, numbered: bool, expected: bool
) -> tuple[Head, str]:
    """Return whether the weights' own head fits the classes of the images, and why not, in words.

    It does where names say that the classes are the same, or where the images are those that it was trained on. Where
    an accuracy is `expected` of it, the classes are taken to be the same, in their order, if they are as many.

    Raises:
        UserError: An accuracy is expected, and there are other classes.
    """
    same_names = not numbered and bool(info.class_names) and set(info.class_names) == set(class_names)
    if same_names or info.data_fingerprint == data_fingerprint:
        return "kept", ""
    if expected and info.classes == len(class_names):
        return "kept", ""
    if expected:
        raise UserError(
            f"--expect measures the weights with their own head, which has {info.classes:,} classes; the images have "
            f"{len(class_names):,}.",
            "Give images of the classes that the weights were trained on, or remove --expect.",
        )
    if not info.classes:
        return "new", "the weights have none"
    if info.classes != len(class_names):
        return "new", f"that of the weights has {info.classes:,}"
    return (
        "new",
        "that of the weights has other names for as many" if info.class_names else "nothing names those of the weights",
    )


def adapt(weights: PretrainedWeights, class_names: Sequence[str], channels: int, head: Head) -> dict[str, Tensor]:
    """Return the tensors to begin with: without a head where it is to be new, with its classes in the images' order."""
    tensors, info = dict(weights.tensors), weights.info
    parts = [f"{info.architecture.head}.{name}" for name in ("weight", "bias")]
    if head == "new":
        for name in parts:
            tensors.pop(name, None)
    elif info.class_names != tuple(class_names) and set(info.class_names) == set(class_names):
        order = torch.tensor([info.class_names.index(name) for name in class_names])
        tensors |= {name: tensors[name][order] for name in parts}
    if channels == 1 and info.channels == 3:
        tensors |= fold_colors(tensors, info.preprocessing)
    return tensors


def fold_colors(tensors: dict[str, Tensor], preprocessing: WeightsPreprocessing | None) -> dict[str, Tensor]:
    """Return the first layer's tensors for grey images, whose output is what the network's is for the same in RGB.

    A grey value z, normalized by the mean M and the deviation S of the three channels', is in channel c the value
    (S z + M - m_c) / s_c. The constant part moves the running mean of the BatchNorm that follows. At the image's
    border, where the padding is 0 in each channel, outputs differ a little.
    """
    weight = tensors["conv1.weight"].double()
    mean, std = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    if preprocessing is not None:
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (preprocessing.mean, preprocessing.std))
    scale, shift = std.mean() / std, (mean.mean() - mean) / std
    folded = (weight * scale[:, None, None]).sum(1, keepdim=True)
    constant = (weight * shift[:, None, None]).sum((1, 2, 3))
    running_mean = tensors["bn1.running_mean"].double() - constant
    return {"conv1.weight": folded.float(), "bn1.running_mean": running_mean.float()}


@torch.no_grad()
def load_into(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load adapted tensors into a network; a head that is not among them stays as it was drawn."""
    result = network.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    head = head_of(network)
    assert {id(network.get_parameter(name)) for name in result.missing_keys} <= {id(p) for p in head.parameters()}
