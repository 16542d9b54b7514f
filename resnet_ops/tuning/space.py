"""The search space: options of `train`, each with some values or a range of them, parsed and checked.

How points are drawn from it is in `algorithms`. Nothing here imports torch.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from resnet_ops.config import NetworkConfig, TrainConfig, did_you_mean_data
from resnet_ops.config_base import explain
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import decode_text
from resnet_ops.recipe_config import Recipe
from resnet_ops.recipes.reading import configure
from resnet_ops.tuning.config import TuneConfig

Value = str | int | float | bool
FAMILIES = ("resnet", "plain")
TUNE_OPTIONS = {"depths": "depth", "family": "family", "lr": "lr"}  # options of tune, and their names in a point
NOT_SEARCHABLE = {"epochs", "auto_batch", "weights", "weights_key"}  # the same for all trials
# What `tune` has no option of the same name for.
IN_A_RECIPE = "Set it in a file that --recipe names."
NO_OPTION = {"fit_all": "Use --refit."} | dict.fromkeys(("stream", "max_time", "target_accuracy"), IN_A_RECIPE)
TRAIN_OPTIONS = tuple(
    n for n in ("recipe", "seed", *NetworkConfig.model_fields, *Recipe.model_fields) if n not in NOT_SEARCHABLE
)
WITH_COMMAS = {"milestones", "rand_augment"}  # options whose value is itself a list; so is that of CLASS=WEIGHT
LOG_RATIO = 10  # a range that spans as much is searched on a logarithmic scale


@dataclass(frozen=True)
class Choices:
    """A list of values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """All values from `low` to `high`, drawn uniformly, or uniformly in their logarithms if `log`."""

    low: float
    high: float
    log: bool
    whole: bool  # integers only


# The learning rates that are searched by default with other optimizers than SGD, and with several of them.
ADAMW_RATES = Range(1e-4, 1e-2, log=True, whole=False)
RATES_OF_BOTH = Range(1e-4, 1.0, log=True, whole=False)


@dataclass(frozen=True)
class Space:
    """A search space: choices and ranges by option, and the values that all points share.

    Where there are `points`, those are the trials, in their order, and nothing else is searched. The options among
    `defaults` were not given: the images may change them.
    """

    searched: dict[str, Choices | Range]
    fixed: dict[str, Value]
    points: tuple[dict[str, Value], ...] = ()
    defaults: frozenset[str] = field(default=frozenset(), compare=False)


def train_options(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `train` at a point of the space, its depth and family joined into the model's name."""
    rest = {name: value for name, value in point.items() if name not in ("depth", "family")}
    return {"model": f"{point['family']}{point['depth']}"} | rest if "depth" in point else rest


def read_space(config: TuneConfig, pairs: Iterable[str] = ()) -> Space:
    """Read the search space from the file, the options, and `pairs` of OPTION=VALUES; the later override the earlier.

    Raises:
        UserError: An option is not one of train's, a value is wrong, or a range is empty or inverted.
    """
    tune_options = {name: ("--" + name, getattr(config, name)) for name in TUNE_OPTIONS}
    file_options = read_space_file(config.space) if config.space else {}
    requested = tune_options | {name: (f"{config.space}: {name}", value) for name, value in file_options.items()}
    requested |= {name: tune_options[name] for name in TUNE_OPTIONS if name in config.model_fields_set}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not value:
            raise UserError(
                f"{pair!r} is not OPTION=VALUES.", did_you_mean_data([pair]) or "Write it like weight_decay=1e-5:1e-3."
            )
        requested[name.replace("-", "_").lstrip("_")] = (pair, value)
    defaults = {TUNE_OPTIONS[name] for name in TUNE_OPTIONS if requested.get(name) is tune_options[name]}
    defaults -= {TUNE_OPTIONS[name] for name in TUNE_OPTIONS if name in config.model_fields_set}
    if "model" in requested:  # which is depth and family in one
        del requested["depths"], requested["family"]
        defaults -= {"depth", "family"}
    searched: dict[str, Choices | Range] = {}
    fixed: dict[str, Value] = {}
    for name, (source, value) in requested.items():
        values = _parse(name, source, value)
        option = TUNE_OPTIONS.get(name, name)
        if isinstance(values, Choices) and len(values.values) == 1:
            fixed[option] = values.values[0]
        else:
            searched[option] = values
    if requested.get("lr") == tune_options["lr"] and "lr" not in config.model_fields_set:
        optimizer = searched.get("optimizer") or fixed.get("optimizer") or configure(**config.train_options).optimizer
        if optimizer != "sgd":
            searched["lr"] = ADAMW_RATES if optimizer == "adamw" else RATES_OF_BOTH
    for name in config.given:
        if name in searched or name in fixed:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is both fixed for all trials and searched.", "Remove one of the two.")
    if not searched:
        raise UserError("Nothing to search: every option has one value.", "Give --depths or --lr more values.")
    return Space(searched, fixed, defaults=frozenset(defaults))


def read_space_file(path: Path) -> dict[str, Any]:
    """Read the file of `--space`.

    Raises:
        UserError: It does not exist, or is not TOML.
    """
    try:
        return tomllib.loads(decode_text(path.expanduser().read_bytes()))
    except OSError as error:
        raise UserError(f"--space {path} cannot be read: {error.strerror}.", "Check its path.") from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}.", "See https://toml.io for the syntax.") from None


def _parse(name: str, source: str, value: Any) -> Choices | Range:
    if name not in TUNE_OPTIONS and name not in TRAIN_OPTIONS:
        if name in TrainConfig.model_fields:
            remedy = NO_OPTION.get(name, f"Set it with --{name.replace('_', '-')}.")
            raise UserError(f"{source}: {name} is the same for all trials.", remedy)
        remedy = did_you_mean(name, [*TUNE_OPTIONS, *TRAIN_OPTIONS])
        raise UserError(f"{source}: there is no option {name!r} to search.", remedy)
    if isinstance(value, str) and _is_number(name) and ":" in value:
        return _parse_range(name, source, value)
    if isinstance(value, str):
        value = [value] if name in WITH_COMMAS or "=" in value else [part.strip() for part in value.split(",")]
    values = tuple(_parse_value(name, source, each) for each in (value if isinstance(value, list) else [value]))
    if not values:
        raise UserError(f"{source}: no value to search.", "Give one or more.")
    if len(set(values)) < len(values):
        raise UserError(f"{source} contains a duplicate.", "Give each value once.")
    return Choices(values)


def _parse_range(name: str, source: str, text: str) -> Range:
    match = re.fullmatch(r"([^:]+):([^:]+)(?::(log|linear))?", text)
    if name == "depths" or match is None:
        remedy = "List them: 8,14,20." if name == "depths" else "Write MIN:MAX, or MIN:MAX:log or :linear."
        raise UserError(f"{source} {text!r} is not a range.", remedy)
    low, high = (_parse_value(name, source, end) for end in match.groups()[:2])
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if not low < high:
        problem = "empty" if low == high else "inverted"
        raise UserError(f"{source}: the range {text} is {problem}.", "Write MIN:MAX, such as 0.01:1.")
    if match[3] == "log" and low <= 0:
        raise UserError(f"{source}: a logarithmic range cannot start at {low}.", "Start above 0, or use :linear.")
    log = match[3] == "log" or (match[3] is None and low > 0 and high / low >= LOG_RATIO)
    return Range(low, high, log, whole=isinstance(low, int))


def _parse_value(name: str, source: str, value: Any) -> Value:
    """Return a value with the type that `train` gives it.

    Raises:
        UserError: It is not valid.
    """
    if name == "depths":
        text = str(value)
        if not re.fullmatch(r"\d{1,5}(-cifar)?", text):
            raise UserError(f"{source}: {text!r} is not a depth.", "Depths are numbers of layers, such as 20,56,110.")
        return int(text) if text.isdigit() else text
    if name == "family":
        if value not in FAMILIES:
            raise UserError(f"{source} cannot be {str(value)!r}.", f"Valid: {', '.join(FAMILIES)}.")
        return str(value)
    try:
        typed: Value = getattr(TrainConfig(**{name: value}), name)
    except ValidationError as error:
        raise explain(TrainConfig, error, option=source) from None
    return typed


def _is_number(name: str) -> bool:
    """Return whether the option takes numbers, which may be given as a range."""
    if name in ("depths", "family"):
        return name == "depths"
    return bool({int, float} & set(_types(TrainConfig.model_fields[name].annotation)))


def _types(annotation: Any) -> list[Any]:
    """Return the types in an annotation such as `Annotated[int | None, ...]`."""
    arguments = get_args(annotation)
    return [kind for argument in arguments for kind in _types(argument)] if arguments else [annotation]
