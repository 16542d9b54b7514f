"""Layers that stay as they are: parameters without gradients, BatchNorm that keeps its statistics.

What is frozen follows from the configuration and the epoch alone, so that a resumed run goes on as it would have.
"""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of every kind, synchronized or not

from resnet_ops.config import TrainConfig
from resnet_ops.models import layers_of
from resnet_ops.recipe_config import NO_LAYER


def frozen_layers(config: TrainConfig, network: nn.Module, epoch: int) -> list[nn.Module]:
    """Return the modules that stay as they are in an epoch, counted from 0: those up to a layer, in their order."""
    ended = config.freeze_epochs is not None and epoch >= config.freeze_epochs
    if ended or config.freeze == NO_LAYER or (config.freeze is None and config.freeze_epochs is None):
        return []
    layers = layers_of(network)
    names = list(layers)
    last = len(names) if config.freeze is None else names.index(config.freeze) + 1
    return [module for name in names[:last] for module in layers[name]]


def parameters_of(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    """Return the parameters of some modules."""
    return {parameter for module in modules for parameter in module.parameters()}


def freeze(network: nn.Module, config: TrainConfig, epoch: int) -> bool:
    """Have gradients computed of nothing but what an epoch trains.

    Returns:
        Whether that is something else than before.
    """
    frozen, changed = parameters_of(frozen_layers(config, network, epoch)), False
    for parameter in network.parameters():
        if parameter.requires_grad == (parameter in frozen):
            changed = True
            parameter.requires_grad_(parameter not in frozen)
            parameter.grad = None
    return changed


def keep_statistics(network: nn.Module, config: TrainConfig, epoch: int) -> None:
    """Have the BatchNorm of frozen layers, or all of it, normalize by the statistics that it has."""
    layers = [network] if config.freeze_batchnorm else frozen_layers(config, network, epoch)
    for module in (module for layer in layers for module in layer.modules()):
        if isinstance(module, BatchNorm):
            module.eval()
