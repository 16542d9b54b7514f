"""The networks are the paper's and torchvision's."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from resnet_ops.architectures import IMAGENET_BLOCKS, check_image_size, parse_name
from resnet_ops.errors import UserError
from resnet_ops.models import BasicBlock, Bottleneck, build, count_parameters


# He et al. 2015, table 6; the exact counts of the first four are those of the networks as published.
@pytest.mark.parametrize(
    ("depth", "millions", "exact"),
    [
        (20, 0.27, 269_722),
        (32, 0.46, 464_154),
        (44, 0.66, 658_586),
        (56, 0.85, 853_018),
        (110, 1.7, None),
        (1202, 19.4, None),
    ],
)
def test_cifar_parameters_are_the_papers(depth: int, millions: float, exact: int | None) -> None:
    with torch.device("meta"):
        residual = count_parameters(build(f"resnet{depth}", num_classes=10))
        plain = count_parameters(build(f"plain{depth}", num_classes=10))
    assert round(residual / 1e6, 1 if millions > 1 else 2) == millions
    assert exact in (None, residual)
    assert plain == residual  # option A adds none: 'exactly the plain net's depth, width and parameters'


@pytest.mark.parametrize("depth", sorted(IMAGENET_BLOCKS))
def test_imagenet_family_takes_torchvisions_weights_and_gives_its_logits(depth: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).eval()
    with torch.no_grad():
        for module in theirs.modules():  # BatchNorm that does something
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    ours = build(f"resnet{depth}", num_classes=7).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_with_a_zeroed_residual_branch_is_the_identity(block: type[BasicBlock] | type[Bottleneck]) -> None:
    made = block(8 * block.expansion, 8, 1, None, plain=False).eval()
    last = made.bn2 if isinstance(made, BasicBlock) else made.bn3
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = torch.rand(2, 8 * block.expansion, 5, 5)  # non-negative, as what follows a ReLU is
    assert torch.equal(made(x), x)


@pytest.mark.parametrize("name", ["20", "56", "18", "50"])
def test_a_plain_network_is_the_residual_one_without_its_shortcuts(name: str) -> None:
    residual, plain = build(f"resnet{name}", num_classes=5), build(f"plain{name}", num_classes=5)
    kept = {key: value for key, value in residual.state_dict().items() if ".downsample." not in key}
    assert list(plain.state_dict()) == list(kept)
    plain.load_state_dict(kept)
    for module in residual.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            module.plain = True  # takes the shortcut out
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(residual.eval()(images), plain.eval()(images))


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 2), ("C", 9)])
def test_shortcut_options(shortcut: str, projections: int) -> None:
    network = build("resnet20", num_classes=10, shortcut=shortcut)  # type: ignore[arg-type]
    made = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(made) == projections


def test_option_a_pads_with_zeros_and_subsamples() -> None:
    network = build("resnet8", num_classes=10)
    downsample = network.layer2[0].downsample
    x = torch.rand(1, 16, 6, 6)
    out = downsample(x)
    assert out.shape == (1, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


@pytest.mark.parametrize("name", ["resnet8", "plain14", "resnet50-cifar", "resnet18", "plain50"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 33, 32), (4, 40, 56)])
def test_any_channels_image_size_and_classes(name: str, channels: int, height: int, width: int) -> None:
    network = build(name, num_classes=3, in_channels=channels).eval()
    assert network(torch.zeros(2, channels, height, width)).shape == (2, 3)


@given(st.integers(0, 20_000))
def test_every_depth_is_a_network_or_gets_valid_ones_named(depth: int) -> None:
    try:
        architecture = parse_name(f"plain{depth}")
    except UserError as error:
        near = error.remedy.removeprefix("Valid nearby: ").rstrip(".").split(", ")
        assert near
        assert all(parse_name(name).name == name for name in near)
    else:
        assert architecture.depth == depth
        assert architecture.family == ("imagenet" if depth in IMAGENET_BLOCKS else "cifar")
        assert depth in IMAGENET_BLOCKS or depth == 2 + 2 * sum(architecture.blocks)


def test_names() -> None:
    assert parse_name("resnet50").family == "imagenet"
    assert parse_name("resnet50-cifar").family == "cifar"
    assert parse_name("ResNet-20").name == parse_name("resnet20-cifar").name == "resnet20"
    assert parse_name("resnet50-cifar").name == "resnet50-cifar"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet21", "resnet18, resnet20, resnet26"),
        ("resnet7", "resnet8"),
        ("resnet18-cifar", "resnet14-cifar, resnet20-cifar"),
        ("rasnet20", "Did you mean resnet20?"),
        ("resnet999999998", "resnet9998"),
        ("", "resnetN"),
    ],
)
def test_an_impossible_name_gets_what_is_valid_nearby(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint.replace("?", r"\?")):
        parse_name(name)


def test_a_plain_network_has_no_shortcut_to_choose() -> None:
    with pytest.raises(UserError, match="plain20 is a plain network"):
        build("plain20", num_classes=10, shortcut="B")


def test_images_too_small_are_refused_with_a_network_that_fits() -> None:
    with pytest.raises(UserError, match=r"at least 32x32.*8x8.*resnet20"):
        check_image_size(parse_name("resnet18"), (8, 8))
    check_image_size(parse_name("resnet20"), (8, 8))


def test_training_mode_runs_at_the_smallest_image() -> None:
    for name in ("resnet8", "resnet18"):
        network = build(name, num_classes=2)
        side = network.architecture.smallest_image
        network(torch.randn(2, 3, side, side)).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"), [("alexnet", 61_100_840), ("vgg19", 143_667_240), ("googlenet", 6_624_904)]
)
def test_baselines_are_those_of_their_time(name: str, parameters: int) -> None:
    """As torchvision publishes their weights; GoogLeNet without its auxiliary classifiers."""
    with torch.device("meta"):
        assert count_parameters(build(name, num_classes=1000)) == parameters


@pytest.mark.parametrize("name", ["alexnet8", "googlenet22"])
def test_baselines_take_images_from_their_smallest_on_of_any_channels(name: str) -> None:
    architecture = parse_name(name)
    network = build(architecture, num_classes=3, in_channels=1).eval()
    side = architecture.smallest_image
    assert network(torch.zeros(2, 1, side, side)).shape == (2, 3)
    with pytest.raises(UserError, match=f"{name} needs images of at least {side}x{side}"):
        check_image_size(architecture, (side, side - 1))
    with pytest.raises(UserError, match="has no shortcuts"):
        build(architecture, num_classes=3, shortcut="A")
    with pytest.raises(UserError, match="Did you mean vgg19"):
        parse_name("vgg16")
