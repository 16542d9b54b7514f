"""The trainings of a study in their order: the points of a search, each with options of `train`.

How they are run is in `job`.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any, get_args

from resnet_ops.architectures import BASELINES, Shortcut, parse_name
from resnet_ops.config import EXTENDING, TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.recipes.reading import configure
from resnet_ops.study.config import Study, StudyConfig
from resnet_ops.tuning.config import TrialsConfig, TuneConfig
from resnet_ops.tuning.space import Space

DEPTHS: dict[Study, str] = {"degradation": "8,20,56,110", "responses": "20,56,110", "shortcuts": "20,56"}
OPTIONS = "A,B,C"
# Unless there is a recipe. On the digits 12 epochs take minutes, and are enough for plain-20 to learn and for
# plain-56 to be far behind. At train's own 0.1 the gradients of plain-110, which grow a million times on their way
# back, have made it diverge in its first epoch.
DEFAULTS = {"epochs": 12, "lr": 0.05}
# A row of pixels cropped from an 8x8 digit is an eighth of it, and some digits become ambiguous. Uncropped, every
# network that can be trained fits all but one or two, and the training error that remains is that of the optimization.
DIGITS_DEFAULTS = DEFAULTS | {"crop_padding": 0}
# He et al. 2015, sec. 4.2: ResNet-110 begins with a tenth of the learning rate until it learns, about 400 of 64k steps.
WARM_UP_FROM, WARM_UP = 110, {"warmup_ratio": 400 / 64_000, "warmup": "constant"}


def shared_options(config: StudyConfig) -> dict[str, Any]:
    """Return the options of `train` that all trainings share: the study's defaults, overridden by what was given."""
    shared = {name: value for name, value in config.given.items() if name != "seed"}
    own = {name: value for name in DEFAULTS if (value := getattr(config, name)) is not None}
    defaults = DIGITS_DEFAULTS if shared.get("data", TrainConfig.default("data")) == "digits" else DEFAULTS
    return ({} if shared.get("recipe") else defaults) | shared | own


def search_config(config: StudyConfig) -> TuneConfig:
    """Return the study as a search without early stopping."""
    resources = {
        name: getattr(config, name) for name in TrialsConfig.model_fields.keys() & config.model_fields_set - {"given"}
    }
    return TuneConfig.of(search="grid", scheduler="none", given=shared_options(config), **resources)


def search_space(config: StudyConfig, warn: Callable[[str], None] = lambda _: None) -> Space:
    """Return every training of the study: seed by seed, the deepest first, so that none of these is left for the end.

    Args:
        config: The study.
        warn: Called with which baselines are left out, and why.

    Raises:
        UserError: A depth or a shortcut is not valid, or the images for baselines cannot be read.
    """
    base = configure(**shared_options(config))
    for name in sorted(EXTENDING - {"epochs"}):
        if getattr(base, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: a study compares trainings of one length.", f"Remove {option}.")
    if base.weights is not None:
        raise UserError("--weights: a study compares networks that are trained from scratch.", "Remove --weights.")
    first_seed = config.given.get("seed", TrainConfig.default("seed"))
    networks = _networks(config) + (_baselines(config, base, warn) if config.baselines else [])
    points = [
        {"lr": base.lr, **network, "seed": seed, **_warm_up(network, base)}
        for seed in range(first_seed, first_seed + config.seeds)
        for network in sorted(networks, key=lambda network: -parse_name(_name(network)).depth)
    ]
    return Space({}, {}, tuple(points))


def _networks(config: StudyConfig) -> list[dict[str, Any]]:
    if config.options is not None and config.study != "shortcuts":
        raise UserError("--options selects shortcuts to compare.", "Remove it, or run: resnet-ops study shortcuts.")
    depths = _split("--depths", config.depths or DEPTHS[config.study])
    for depth in depths:
        if not re.fullmatch(r"\d{1,5}(-cifar)?", depth):
            raise UserError(f"--depths: {depth!r} is not a depth.", "Depths are numbers of layers, such as 20,56,110.")
        try:
            parse_name(f"resnet{depth}")
        except UserError as error:
            raise error.copy_with(cause=f"--depths: {error.cause}") from None
    numbers = [int(depth) if depth.isdigit() else depth for depth in depths]
    if config.study != "shortcuts":
        return [_network(d, f) for d, f in itertools.product(numbers, ("plain", "resnet"))]
    options = _split("--options", config.options or OPTIONS)
    for option in options:
        if option not in get_args(Shortcut):
            raise UserError(f"--options: {option!r} is not a shortcut.", "Valid: A, B, C.")
    return [{"depth": d, "family": "resnet", "shortcut": o} for d, o in itertools.product(numbers, options)]


def _baselines(config: StudyConfig, base: TrainConfig, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    if config.study != "degradation":
        raise UserError("--baselines applies to the degradation study only.", "Remove it.")
    data = open_source(base).record
    networks = []
    for kind, (depth, smallest) in BASELINES.items():
        if min(data.height, data.width) < smallest:
            warn(f"Skipping {kind}{depth}: it needs images of at least {smallest}x{smallest} pixels.")
            continue
        # Without BatchNorm the others' learning rate makes them diverge; torchvision's recipes have a tenth as well.
        slower = {} if kind == "googlenet" else {"lr": base.lr / 10}
        networks.append({"depth": depth, "family": kind, **slower})
    return networks


def _network(depth: int | str, family: str) -> dict[str, Any]:
    network: dict[str, Any] = {"depth": depth, "family": family}
    if family == "resnet" and parse_name(_name(network)).family == "imagenet":
        network["shortcut"] = "A"  # as in table 2: no more parameters than the plain network has
    return network


def _split(option: str, text: str) -> list[str]:
    values = [value.strip() for value in text.split(",")]
    if len(set(values)) < len(values):
        raise UserError(f"{option} {text} contains a duplicate.", "Give each value once.")
    return values


def _name(network: dict[str, Any]) -> str:
    return f"{network['family']}{network['depth']}"


def _warm_up(network: dict[str, Any], base: TrainConfig) -> dict[str, Any]:
    architecture = parse_name(_name(network))
    if base.recipe != "paper" or base.warmup_steps or base.warmup_ratio or architecture.family != "cifar":
        return {}
    return WARM_UP if architecture.depth >= WARM_UP_FROM else {}
