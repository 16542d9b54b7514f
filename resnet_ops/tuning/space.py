"""What may be searched: options of `train`, each with some values or a range of them. Nothing here knows torch."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from resnet_ops.config import NetworkConfig, Recipe, TrainConfig
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.options import explain
from resnet_ops.tuning.config import TuneConfig

Value = str | int | float | bool
FAMILIES = ("resnet", "plain")
SEARCHED = {"depths": "depth", "family": "family", "lr": "lr"}  # options of tune itself, and what a trial has of them
NOT_SEARCHED = {"epochs", "auto_batch"}  # the budget, which all trials have alike
OPTIONS = tuple(
    n for n in ("recipe", "seed", *NetworkConfig.model_fields, *Recipe.model_fields) if n not in NOT_SEARCHED
)
WHOLE = {"milestones"}  # whose value has commas of its own
LOG_RATIO = 10  # a range that spans as much is searched by orders of magnitude


@dataclass(frozen=True)
class Choices:
    """Some values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """All values from `low` to `high`; evenly spread in their logarithms if `log`."""

    low: float
    high: float
    log: bool
    whole: bool  # integers only


@dataclass(frozen=True)
class Space:
    """What is searched, by the name that a trial has it under, and what all trials have.

    Where there are `points`, those are the trials, in their order, and nothing else is searched.
    """

    searched: dict[str, Choices | Range]
    fixed: dict[str, Value]
    points: tuple[dict[str, Value], ...] = ()

    @property
    def combinations(self) -> int | None:
        """How many there are; None where a range has no end of them."""
        count = 1
        for values in self.searched.values():
            if isinstance(values, Range):
                return None
            count *= len(values.values)
        return count


def read(config: TuneConfig, pairs: Iterable[str] = ()) -> Space:
    """Gather what is to be searched: from the options, the file, and `pairs` of OPTION=VALUES; the later wins.

    Raises:
        UserError: An option is not one of train's, a value is wrong, or a range is empty or inverted.
    """
    asked: dict[str, tuple[str, Any]] = {name: ("--" + name, getattr(config, name)) for name in SEARCHED}
    if config.space:
        asked |= {name: (f"{config.space}: {name}", value) for name, value in read_file(config.space).items()}
    asked |= {name: ("--" + name, getattr(config, name)) for name in SEARCHED if name in config.model_fields_set}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not value:
            raise UserError(f"{pair!r} is not OPTION=VALUES.", "Write it like weight_decay=1e-5:1e-3.")
        asked[name.replace("-", "_").lstrip("_")] = (pair, value)
    if "model" in asked:  # which says both
        del asked["depths"], asked["family"]
    searched: dict[str, Choices | Range] = {}
    fixed: dict[str, Value] = {}
    for name, (where, value) in asked.items():
        values = _parse(name, where, value)
        option = SEARCHED.get(name, name)
        if isinstance(values, Choices) and len(values.values) == 1:
            fixed[option] = values.values[0]
        else:
            searched[option] = values
    _check_against(config.given, searched, fixed)
    if not searched:
        raise UserError("Nothing to search: every option has one value.", "Give --depths or --lr more values.")
    return Space(searched, fixed)


def options(point: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `train` that a point of the space stands for: depth and family are the model's name."""
    rest = {name: value for name, value in point.items() if name not in ("depth", "family")}
    return {"model": f"{point['family']}{point['depth']}"} | rest if "depth" in point else rest


def _check_against(given: Mapping[str, Any], searched: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name in given:
        if name in searched or name in fixed:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is both fixed for all trials and searched.", "Remove one of the two.")


def read_file(path: Path) -> dict[str, Any]:
    """What a file says is to be searched.

    Raises:
        UserError: It is not there, or no TOML.
    """
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--space {path} cannot be read: {error.strerror}.", "Check its path.") from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}.", "See https://toml.io for the syntax.") from None


def _parse(name: str, where: str, value: Any) -> Choices | Range:
    if name not in SEARCHED and name not in OPTIONS:
        known = [*SEARCHED, *OPTIONS]
        if name in TrainConfig.model_fields:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{where}: {name} is the same for all trials.", f"Set it with {option}.")
        raise UserError(f"{where}: there is no option {name!r} to search.", did_you_mean(name, known))
    if isinstance(value, str) and _is_number(name) and ":" in value:
        return _parse_range(name, where, value)
    if isinstance(value, str):
        value = [value] if name in WHOLE else [part.strip() for part in value.split(",")]
    values = tuple(_typed(name, where, each) for each in (value if isinstance(value, list) else [value]))
    if not values:
        raise UserError(f"{where}: no value to search.", "Give one or more.")
    if len(set(values)) < len(values):
        raise UserError(f"{where} contains a duplicate.", "Give each value once.")
    return Choices(values)


def _parse_range(name: str, where: str, text: str) -> Range:
    match = re.fullmatch(r"([^:]+):([^:]+)(?::(log|linear))?", text)
    if name == "depths" or match is None:
        remedy = "List them: 8,14,20." if name == "depths" else "Write MIN:MAX, or MIN:MAX:log or :linear."
        raise UserError(f"{where} {text!r} is not a range.", remedy)
    low, high = (_typed(name, where, end) for end in match.groups()[:2])
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if not low < high:
        what = "empty" if low == high else "inverted"
        raise UserError(f"{where}: the range {text} is {what}.", "Write MIN:MAX, such as 0.01:1.")
    if match[3] == "log" and low <= 0:
        raise UserError(f"{where}: a logarithmic range cannot start at {low}.", "Start above 0, or use :linear.")
    log = match[3] == "log" or (match[3] is None and low > 0 and high / low >= LOG_RATIO)
    return Range(low, high, log, whole=isinstance(low, int))


def _typed(name: str, where: str, value: Any) -> Value:
    """One value, as `train` would have it.

    Raises:
        UserError: It would not.
    """
    if name == "depths":
        text = str(value)
        if not re.fullmatch(r"\d{1,5}(-cifar)?", text):
            raise UserError(f"{where}: {text!r} is not a depth.", "Depths are numbers of layers, such as 20,56,110.")
        return int(text) if text.isdigit() else text
    if name == "family":
        if value not in FAMILIES:
            raise UserError(f"{where} cannot be {str(value)!r}.", f"Valid: {', '.join(FAMILIES)}.")
        return str(value)
    try:
        typed: Value = getattr(TrainConfig(**{name: value}), name)
    except ValidationError as error:
        raise explain(TrainConfig, error, option=where) from None
    return typed


def _is_number(name: str) -> bool:
    """Whether the option takes numbers, of which there may be a range."""
    if name in ("depths", "family"):
        return name == "depths"
    return bool({int, float} & set(_kinds(TrainConfig.model_fields[name].annotation)))


def _kinds(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [kind for each in inner for kind in _kinds(each)] if inner else [annotation]
