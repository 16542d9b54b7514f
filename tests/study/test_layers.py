"""Layers are measured correctly, against a forward and backward pass written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_ops.models import ResNet, build
from resnet_ops.study.layers import measure_layers


def written_out(network: ResNet, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a CIFAR network's responses by name, with their gradients, and the shortcut of each block."""
    responses: dict[str, Tensor] = {}
    shortcuts: dict[str, Tensor] = {}

    def layer(name: str, h: Tensor, conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> Tensor:
        h = F.conv2d(h, conv.weight, stride=conv.stride, padding=conv.padding)
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), correction=0, keepdim=True)
        h = (h - mean) / (var + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        h.retain_grad()
        responses[name] = h
        return h

    h = layer("conv1", x, network.conv1, network.bn1).clamp(min=0)
    for stage in ("layer1", "layer2", "layer3"):
        for index, block in enumerate(getattr(network, stage)):
            name = f"{stage}.{index}"
            out = layer(f"{name}.conv1", h, block.conv1, block.bn1).clamp(min=0)
            out = layer(f"{name}.conv2", out, block.conv2, block.bn2)
            if not block.plain:
                shortcut = h if block.downsample is None else block.downsample(h)
                shortcuts[f"{name}.conv2"] = shortcut
                out = out + shortcut
            h = out.clamp(min=0)
    F.cross_entropy(network.fc(h.mean((2, 3))), y).backward()
    return responses, shortcuts


@pytest.mark.parametrize("model", ["plain14", "resnet14"])
def test_responses_and_gradients_are_the_networks_own(model: str) -> None:
    torch.manual_seed(0)
    network = build(model, num_classes=10, in_channels=1)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured = measure_layers(network, x, y)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())

    responses, shortcuts = written_out(network, x, y)
    assert [layer.name for layer in measured] == list(responses)
    assert len(measured) == 13  # of 14 layers all but the last, which is linear
    weights = dict(network.named_parameters())
    for layer in measured:
        expected = responses[layer.name]
        gradient, of_weights = expected.grad, weights[f"{layer.name}.weight"].grad
        assert gradient is not None
        assert of_weights is not None
        assert layer.response_std == pytest.approx(float(expected.detach().std(correction=0)), rel=1e-4)
        assert layer.response_rms == pytest.approx(float(expected.detach().square().mean().sqrt()), rel=1e-4)
        assert layer.response_gradient == pytest.approx(float(gradient.norm()), rel=1e-3)
        assert layer.weight_gradient == pytest.approx(float(of_weights.norm()), rel=1e-3)
        if layer.name in shortcuts:
            ratio = expected.std(correction=0) / shortcuts[layer.name].std(correction=0)
            assert layer.of_shortcut == pytest.approx(float(ratio.detach()), rel=1e-4)
        else:
            assert layer.of_shortcut is None


@pytest.mark.parametrize(("model", "layers"), [("resnet18", 17), ("resnet50", 49)])
def test_layers_of_the_imagenet_family_are_counted_without_shortcuts(model: str, layers: int) -> None:
    network = build(model, num_classes=10)
    measured = measure_layers(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert len(measured) == layers
    assert sum(layer.of_shortcut is not None for layer in measured) == {17: 8, 49: 16}[layers]
