"""Measures the responses and gradients of a network's layers, at initialization and after training.

He et al. 2015 show the standard deviations of the layers' responses (fig. 7), and argue that gradients do not vanish
in plain networks with BatchNorm (sec. 4.1). Both are measured on one training batch, in training mode: BatchNorm
takes the batch's own mean and deviation, as it does while training, and the network is left unchanged.
"""

import copy
import re

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from resnet_ops import files
from resnet_ops.models import BasicBlock, Bottleneck, ResNet, build, zero_init_residual
from resnet_ops.run_records import RunRecord
from resnet_ops.runs import Run
from resnet_ops.study.results import Layer, Layers
from resnet_ops.training.mixed_precision import autocast
from resnet_ops.training.session import TrainingSession

FILE = "layers.json"
SIGNIFICANT_DIGITS = 5  # of the numbers in the file


def record_layers(session: TrainingSession) -> None:
    """Measure a network as it was initialized and as it is trained, and write `layers.json` into its run.

    Baselines, which have other layers, are not measured.

    Raises:
        PausedError: The disk is full.
    """
    trainer = session.trainer
    if not isinstance(trainer.network, ResNet):
        return
    trainer.drop_graph()
    x, y = next(iter(trainer.loader.train_batches(0)))
    micro_batch_size = -(-len(x) // trainer.config.accumulate)  # what fits into memory while training
    x, y = x[:micro_batch_size], y[:micro_batch_size]
    with torch.random.fork_rng(devices=[]), autocast(trainer.config.precision, trainer.device):
        initial = _initial_network(session.record).to(trainer.device)
        layers = Layers(initial=measure_layers(initial, x, y), trained=measure_layers(trainer.eval_network, x, y))
    files.write_atomically(session.run.path / FILE, layers.model_dump_json(exclude_none=True).encode() + b"\n")


def read_layers(run: Run) -> Layers | None:
    """Read what was measured in a run; return None if nothing was."""
    try:
        return Layers.model_validate_json(files.read(run.path / FILE))
    except (FileNotFoundError, ValidationError):
        return None


def _initial_network(record: RunRecord) -> nn.Module:
    """Return the network as it was initialized before its training."""
    config, data = record.config, record.data
    torch.manual_seed(config.seed)
    network = build(
        config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
    )
    if config.zero_init_residual:
        zero_init_residual(network)
    return network


def measure_layers(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Layer, ...]:
    """Measure each layer on one batch.

    Args:
        network: Is not changed.
        x: (N, C, H, W) float32, on its device.
        y: (N,) int64 classes, or (N, classes) float32 probabilities of them.
    """
    network = copy.deepcopy(network).train()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    names = [name for name in names if "downsample" not in name]
    responses: dict[str, tuple[float, float]] = {}
    response_gradients: dict[str, float] = {}
    branch_ratios: dict[str, float] = {}

    def record_layer(name: str, norm: nn.Module) -> None:
        def record_response(_: nn.Module, __: object, response: Tensor) -> None:
            values = response.detach().double()
            responses[name] = (float(values.std(correction=0)), float(values.square().mean().sqrt()))
            response.register_hook(lambda gradient: response_gradients.update({name: float(gradient.double().norm())}))

        norm.register_forward_hook(record_response)

    for name in names:
        record_layer(name, network.get_submodule(re.sub(r"conv(\d)$", r"bn\1", name)))
    for name, block in network.named_modules():
        if isinstance(block, BasicBlock | Bottleneck) and not block.plain:
            _record_branch_ratio(name, block, responses, branch_ratios)
    loss = F.cross_entropy(network(x).float(), y)
    loss.backward()
    weights = dict(network.named_parameters())
    return tuple(
        Layer(
            name=name,
            response_std=_rounded(responses[name][0]),
            response_rms=_rounded(responses[name][1]),
            weight_gradient=_rounded(_norm(weights[f"{name}.weight"].grad)),
            response_gradient=_rounded(response_gradients[name]),
            of_shortcut=_rounded(branch_ratios[name]) if name in branch_ratios else None,
        )
        for name in names
    )


def _record_branch_ratio(
    name: str, block: BasicBlock | Bottleneck, responses: dict[str, tuple[float, float]], ratios: dict[str, float]
) -> None:
    """Record, once the block has run, the deviation of its branch's last response relative to its shortcut's."""
    last = f"{name}.conv{3 if isinstance(block, Bottleneck) else 2}"
    shortcut: list[Tensor] = []
    source: nn.Module = block.conv1 if block.downsample is None else block.downsample

    def record_shortcut(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shortcut[:] = [inputs[0] if block.downsample is None else output]

    def record_ratio(*_: object) -> None:
        deviation = float(shortcut.pop().detach().double().std(correction=0))
        if deviation:
            ratios[last] = responses[last][0] / deviation

    source.register_forward_hook(record_shortcut)
    block.register_forward_hook(record_ratio)


def _norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.double().norm())


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
