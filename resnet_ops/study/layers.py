"""What a network's layers say and what reaches them back, at initialisation and after training.

He et al. 2015 show the standard deviations of the layers' responses (fig. 7), and argue that gradients do not vanish
in plain networks with BatchNorm (sec. 4.1). Both are measured on one training batch, in training mode: BatchNorm
takes the batch's own mean and deviation, as it does while training, and nothing of the network is changed.
"""

import copy
import re

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from resnet_ops import files
from resnet_ops.models import BasicBlock, Bottleneck, ResNet, build, zero_init_residual
from resnet_ops.runs import Run, RunRecord
from resnet_ops.study.results import Layer, Layers
from resnet_ops.training.session import TrainingSession
from resnet_ops.training.trainer import autocast

FILE = "layers.json"
DIGITS = 5  # significant ones, of what is written


def record(session: TrainingSession) -> None:
    """Measure the network of a training that is over, and the one that it began with, into `layers.json` of its run.

    Of baselines, which have other layers, nothing is measured.

    Raises:
        PausedError: The disk is full.
    """
    trainer = session.trainer
    if not isinstance(trainer.network, ResNet):
        return
    x, y = next(iter(trainer.loader.train_batches(0)))
    share = -(-len(x) // trainer.config.accumulate)  # what fits into memory while training
    x, y = x[:share], y[:share]
    with torch.random.fork_rng(devices=[]), autocast(trainer.config.precision, trainer.device):
        first = _fresh(session.record).to(trainer.device)
        layers = Layers(initial=measure(first, x, y), trained=measure(trainer.eval_network, x, y))
    files.write_atomically(session.run.path / FILE, layers.model_dump_json(exclude_none=True).encode() + b"\n")


def read(run: Run) -> Layers | None:
    """What was recorded of a run; None where nothing was."""
    try:
        return Layers.model_validate_json(files.read(run.path / FILE))
    except (FileNotFoundError, ValidationError):
        return None


def _fresh(record: RunRecord) -> nn.Module:
    """The network as its training began."""
    config, data = record.config, record.data
    torch.manual_seed(config.seed)
    network = build(
        config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
    )
    if config.zero_init_residual:
        zero_init_residual(network)
    return network


def measure(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Layer, ...]:
    """Measure each layer on a batch.

    Args:
        network: Left as it is.
        x: (N, C, H, W) float32, on its device.
        y: (N,) int64 classes, or (N, classes) float32 shares of them.
    """
    network = copy.deepcopy(network).train()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    names = [name for name in names if "downsample" not in name]
    responses: dict[str, tuple[float, float]] = {}
    backward: dict[str, float] = {}
    shares: dict[str, float] = {}

    def watch(name: str, norm: nn.Module) -> None:
        def seen(_: nn.Module, __: object, response: Tensor) -> None:
            numbers = response.detach().double()
            responses[name] = (float(numbers.std(correction=0)), float(numbers.square().mean().sqrt()))
            response.register_hook(lambda gradient: backward.update({name: float(gradient.double().norm())}))

        norm.register_forward_hook(seen)

    for name in names:
        watch(name, network.get_submodule(re.sub(r"conv(\d)$", r"bn\1", name)))
    for name, block in network.named_modules():
        if isinstance(block, BasicBlock | Bottleneck) and not block.plain:
            _watch_shortcut(name, block, responses, shares)
    loss = F.cross_entropy(network(x).float(), y)
    loss.backward()
    weights = dict(network.named_parameters())
    return tuple(
        Layer(
            name=name,
            response_std=_short(responses[name][0]),
            response_rms=_short(responses[name][1]),
            weight_gradient=_short(_norm(weights[f"{name}.weight"].grad)),
            response_gradient=_short(backward[name]),
            of_shortcut=_short(shares[name]) if name in shares else None,
        )
        for name in names
    )


def _watch_shortcut(
    name: str, block: BasicBlock | Bottleneck, responses: dict[str, tuple[float, float]], shares: dict[str, float]
) -> None:
    last = f"{name}.conv{3 if isinstance(block, Bottleneck) else 2}"
    before: list[Tensor] = []
    source: nn.Module = block.conv1 if block.downsample is None else block.downsample

    def entered(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before[:] = [inputs[0] if block.downsample is None else output]

    def left(*_: object) -> None:
        deviation = float(before.pop().detach().double().std(correction=0))
        if deviation:
            shares[last] = responses[last][0] / deviation

    source.register_forward_hook(entered)
    block.register_forward_hook(left)


def _norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.double().norm())


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
