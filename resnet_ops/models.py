"""Plain and residual networks of any valid depth (He et al. 2015, arXiv 1512.03385); architectures.py names them.

Nothing here knows data, training or devices. Two families, one class:

- CIFAR (sec. 4.2): a 3x3 stem and three stages of 16, 32, 64 channels; 6n + 2 layers.
- ImageNet (sec. 4.1, table 1): a 7x7 stem and four stages of 64...512 channels; basic blocks
  for 18 and 34 layers, bottlenecks for 50, 101 and 152.

The baselines are what was best before (sec. 4.1 compares them): torchvision's AlexNet, VGG-19 and GoogLeNet.

A plain network is the residual one with its shortcuts taken out, nothing else. Parameters are
named as in torchvision's ResNet, whose weights load key for key; like there, a bottleneck
strides in its 3x3 convolution. Shapes: N images, C channels, H height, W width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ops.architectures import BASELINES, Architecture, Kind, Shortcut, parse_name
from resnet_ops.errors import UserError


def build(
    name: str | Architecture,
    *,
    num_classes: int,
    in_channels: int = 3,
    shortcut: Shortcut | None = None,
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: An architecture, or a name that `parse_name` accepts.
        num_classes: Size of the logits.
        in_channels: Channels of the images, e.g. 1 for grey, 3 for RGB.
        shortcut: A, B or C (sec. 4.1); None for the family's default. Plain networks
            have none.

    Returns:
        A network, a `ResNet` unless it is a baseline, from (N, C, H, W) float to (N, num_classes)
        logits, for any H and W of at least `Architecture.smallest_image`.

    Raises:
        UserError: The name is not valid, a shortcut is given for a plain network, or a number
            is below one.
    """
    architecture = name if isinstance(name, Architecture) else parse_name(name)
    if architecture.kind != "resnet" and shortcut is not None:
        what = "a plain network and has" if architecture.kind == "plain" else "a network that has"
        raise UserError(
            f"{architecture.name} is {what} no shortcuts, so shortcut {shortcut} does not apply.",
            "Remove the shortcut, or use the resnet of that depth.",
        )
    if num_classes < 1 or in_channels < 1:
        raise UserError(f"A network needs at least one class and one channel, not {num_classes} and {in_channels}.")
    if architecture.kind in BASELINES:
        return _baseline(architecture.kind, num_classes, in_channels)
    return ResNet(architecture, num_classes, in_channels, shortcut or architecture.default_shortcut)


def _baseline(kind: Kind, num_classes: int, in_channels: int) -> nn.Module:
    """Build torchvision's network for any number of channels; VGG without BatchNorm, which came later."""
    import torchvision.models  # takes a second

    options: dict[str, Any] = {"googlenet": {"aux_logits": False, "init_weights": True}}.get(kind, {})
    builder = {"alexnet": "alexnet", "vgg": "vgg19", "googlenet": "googlenet"}[kind]
    network: nn.Module = getattr(torchvision.models, builder)(num_classes=num_classes, **options)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if in_channels != first.in_channels:
        shape = (first.out_channels, in_channels, *first.kernel_size)
        weight = torch.empty(shape, dtype=first.weight.dtype)
        first.in_channels, first.weight = in_channels, nn.Parameter(nn.init.kaiming_normal_(weight, mode="fan_out"))
    return network


class BasicBlock(nn.Module):
    """Basic block: two 3x3 convolutions F(x), to which the shortcut is added (figure 2)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None, plain: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels * expansion, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(_add_shortcut(self, out, x), inplace=True)


class Bottleneck(nn.Module):
    """Bottleneck block: 1x1 down, 3x3, 1x1 up to four times the channels (figure 5, right)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None, plain: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = downsample
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels * expansion, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(_add_shortcut(self, out, x), inplace=True)


def _add_shortcut(block: BasicBlock | Bottleneck, out: Tensor, x: Tensor) -> Tensor:
    if block.plain:
        return out
    return out + (x if block.downsample is None else block.downsample(x))


class ZeroPadShortcut(nn.Module):
    """Shortcut of option A: subsample, and fill the new channels with zeros, half before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class ResNet(nn.Module):
    """A plain or residual network, with torchvision's names of parameters; made by `build`."""

    def __init__(self, architecture: Architecture, num_classes: int, in_channels: int, shortcut: Shortcut):
        super().__init__()
        self.architecture = architecture
        self.shortcut = shortcut
        imagenet = architecture.family == "imagenet"
        block = Bottleneck if imagenet and architecture.depth >= 50 else BasicBlock
        width = 64 if imagenet else 16

        kernel, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        self.stages = len(architecture.blocks)
        channels = width
        for stage, blocks in enumerate(architecture.blocks):
            layer = self._stage(block, channels, width << stage, blocks, stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", layer)
            channels = (width << stage) * block.expansion
        self.fc = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(
        self, block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, blocks: int, stride: int
    ) -> nn.Sequential:
        plain, out_channels = self.architecture.kind == "plain", channels * block.expansion
        layers: list[nn.Module] = []
        for index in range(blocks):
            inputs, step = (in_channels, stride) if index == 0 else (out_channels, 1)
            downsample = None if plain else _shortcut(self.shortcut, inputs, out_channels, step)
            layers.append(block(inputs, channels, step, downsample, plain))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def _shortcut(option: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    same_shape = in_channels == out_channels and stride == 1
    if same_shape and option != "C":
        return None
    if option == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def head_of(network: nn.Module) -> nn.Linear:
    """Return the layer that the logits come from."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def layers_of(network: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules of each layer with weights, in their order, by torchvision's names, without the head.

    A `ResNet`'s first convolution and BatchNorm are its `stem`; of a `classifier`, the head is left out.
    """
    head, layers = head_of(network), dict[str, list[nn.Module]]()
    for name, child in network.named_children():
        modules = [child] if head not in child.modules() else [part for part in child.children() if part is not head]
        if any(True for module in modules for _ in module.parameters()):
            is_stem = isinstance(network, ResNet) and name in ("conv1", "bn1")
            layers.setdefault("stem" if is_stem else name, []).extend(modules)
    return layers


def zero_init_residual(network: nn.Module) -> None:
    """Let each block begin as its shortcut alone (Goyal et al. 2017, sec. 5.1).

    The weights of each residual branch's last BatchNorm become 0.
    """
    for module in network.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(last.weight)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
