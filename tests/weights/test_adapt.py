"""Weights on other images: heads that fit or do not, classes in another order, grey images."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.weights.adapt import adapt, choose_head, load_into
from resnet_ops.weights.pretrained import PretrainedWeights, WeightsInfo
from resnet_ops.weights.weights_metadata import IMAGENET_MEAN, IMAGENET_STD, WeightsPreprocessing

NAMES = ("cat", "dog", "mouse")


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    made = build("resnet8", num_classes=3, in_channels=channels)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return made.eval()


def pretrained(**info: Any) -> PretrainedWeights:
    described = {
        "origin": "w.pth",
        "sha256": "0" * 64,
        "model": "resnet8",
        "shortcut": "A",
        "channels": 3,
        "classes": 3,
        "class_names": NAMES,
        "preprocessing": WeightsPreprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "data_fingerprint": "of these images",
    }
    return PretrainedWeights(WeightsInfo(**described | info), network().state_dict())


@pytest.mark.parametrize(
    ("info", "names", "fingerprint", "numbered", "expected", "head"),
    [
        ({}, NAMES, "x", False, False, "kept"),
        ({}, NAMES[::-1], "x", False, False, "kept"),
        ({}, ("a", "b", "c"), "x", False, False, "new"),
        ({}, ("a", "b"), "x", False, False, "new"),
        ({"class_names": ()}, ("0", "1", "2"), "x", True, False, "new"),  # whose numbers say nothing
        ({"class_names": ()}, ("0", "1", "2"), "of these images", True, False, "kept"),
        ({"class_names": ()}, ("n01", "n02", "n03"), "x", False, True, "kept"),  # and then measured
        ({"classes": 0, "class_names": ()}, NAMES, "x", False, False, "new"),
    ],
)
def test_a_head_is_kept_where_its_classes_are_the_same(
    info: dict[str, Any], names: tuple[str, ...], fingerprint: str, numbered: bool, expected: bool, head: str
) -> None:
    chosen, why = choose_head(pretrained(**info).info, names, fingerprint, numbered=numbered, expected=expected)
    assert (chosen, bool(why)) == (head, head == "new")


def test_no_accuracy_can_be_expected_of_a_new_head() -> None:
    with pytest.raises(UserError, match="which has 3 classes; the images have 2"):
        choose_head(pretrained().info, ("a", "b"), "x", numbered=False, expected=True)


def test_a_kept_head_answers_in_the_order_of_the_images_classes() -> None:
    ours, x = network(), torch.randn(2, 3, 16, 16)
    load_into(ours, adapt(pretrained(), ("mouse", "cat", "dog"), 3, "kept"))
    torch.testing.assert_close(ours(x), network()(x)[:, [2, 0, 1]])


def test_a_new_head_stays_as_it_was_drawn() -> None:
    torch.manual_seed(1)
    ours = build("resnet8", num_classes=7)
    drawn = ours.fc.weight.clone()  # type: ignore[union-attr,operator]
    load_into(ours, adapt(pretrained(), tuple("abcdefg"), 3, "new"))
    assert torch.equal(ours.fc.weight, drawn)  # type: ignore[union-attr,arg-type]
    assert torch.equal(ours.layer1[0].conv1.weight, network().layer1[0].conv1.weight)  # type: ignore[union-attr,index]


@pytest.mark.parametrize("model", ["alexnet", "vgg19", "googlenet"])
def test_the_baselines_get_a_new_head_too(model: str) -> None:
    with torch.device("meta"):
        theirs, ours = build(model, num_classes=3), build(model, num_classes=7)
    described = pretrained(model=model, shortcut=None).info
    tensors = adapt(PretrainedWeights(described, theirs.state_dict()), tuple("abcdefg"), 3, "new")
    assert theirs.state_dict().keys() - tensors.keys() == {
        f"{described.architecture.head}.{n}" for n in ("weight", "bias")
    }
    load_into(ours, tensors)


def test_grey_images_give_what_they_would_in_color() -> None:
    """After the first BatchNorm, to the border, where padding is 0 in each channel; and all logits, without padding."""
    grey, weights = network(1), pretrained()
    load_into(grey, adapt(weights, NAMES, 1, "kept"))
    values = torch.rand(2, 1, 16, 16)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    assert weights.info.preprocessing is not None
    steps = weights.info.preprocessing.for_channels(1)
    assert steps.mean == (pytest.approx(0.449),)
    x = (values - steps.mean[0]) / steps.std[0]
    in_color = (values - mean) / std

    def stem(of: Any, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = F.relu(of.bn1(of.conv1(images)))[:, :, 1:-1, 1:-1]
        return out

    torch.testing.assert_close(stem(grey, x), stem(network(), in_color), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stem(grey, x), stem(network(), in_color.flip(1)), atol=1e-2)
