"""Writes a recipe for the images at hand: what `train` would choose, and every other option, commented out."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from resnet_ops import files
from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.config import AUTO, RunsConfig, TrainConfig
from resnet_ops.config_base import declarations
from resnet_ops.data.discovery import absolute_paths
from resnet_ops.errors import UserError
from resnet_ops.machine import read_gpus
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipe_config import Recipe
from resnet_ops.results import Result
from resnet_ops.training.defaults import Choice, explain_choices, suggest_weights
from resnet_ops.training.observer import Observer
from resnet_ops.training.preflight import check_training
from resnet_ops.training.start import start_weights

OF_THE_MACHINE = {*ClusterConfig.model_fields, *RunsConfig.model_fields, "cache_dir", "data_root", "name", "recipe"}
ALWAYS = ("data", "model", "weights", "epochs", "batch_size", "lr", "optimizer", "schedule", "flip", "seed")
WIDTH = 96


class RecipeFileResult(Result):
    """A recipe that was written."""

    recipe: files.Place = Field(description="The file.")
    data: str = Field(description="Name of the dataset.")
    model: str = Field(description="Network, such as resnet20.")
    choices: dict[str, str] = Field(description="Why what was chosen is.")
    hint: str | None = Field(description="What would be plainly better, if that is known.")


def write_recipe(file: Path, config: TrainConfig, observer: Observer) -> RecipeFileResult:
    """Write a recipe for images: for `train --recipe`, to be read and edited.

    Args:
        file: The file to write, which ends in .toml.
        config: Where the images are, and what of the training is settled already.
        observer: Receives notes.

    Raises:
        UserError: The file exists already, or training could not use the images or the weights.
    """
    if file.suffix != ".toml":
        raise UserError(f"{file} is no name of a recipe.", "Use one that ends in .toml.")
    if file.exists():
        raise UserError(f"{file} exists already.", "Choose another name: --output.")
    device: Device = "cuda" if read_gpus() else "cpu"
    config = config.model_copy(update=absolute_paths(config))
    requested, _ = start_weights(config, device, observer)
    source, settled = check_training(requested, device)
    choices = tuple(explain_choices(config, settled, source.record, device))
    hint = suggest_weights(config, source.record)
    header = [f"Training of {source.split_summary}.", f"resnet-ops train --recipe {file.name}"]
    if hint:
        header.append(hint)
    files.write_atomically(file, _text(header, settled, config, choices).encode())
    return RecipeFileResult(
        recipe=file.absolute(),
        data=source.record.name,
        model=settled.model,
        choices={choice.option: choice.reason for choice in choices},
        hint=hint,
    )


def _text(header: Sequence[str], settled: TrainConfig, asked: TrainConfig, choices: Sequence[Choice]) -> str:
    """Return the file: what is settled or differs from the defaults first, then all else, by its panel of `--help`."""
    reasons = {choice.option.replace("-", "_"): choice.reason for choice in choices}
    names = [name for name in declarations(TrainConfig) if name not in OF_THE_MACHINE]
    # What depends on the network alone is left to the defaults, so that another network can be put into the file.
    own = asked.model_fields_set | {"data", *reasons}
    chosen = [name for name in names if name in ALWAYS or name in own or _is_changed_by_recipe(name, settled)]
    values = {name: getattr(settled, name) for name in chosen}
    if asked.model != AUTO:
        values["model"] = asked.model
    lines = [*_comment("\n".join(header)), ""]
    for name, value in sorted(values.items(), key=lambda item: ALWAYS.index(item[0]) if item[0] in ALWAYS else 99):
        if value is not None:
            reason = f"  # {reasons[name]}" if name in reasons else ""
            lines.append(f"{name} = {_toml(value)}{reason}")
    lines += ["", *_comment("Every other option, with its default. Remove the # of those that you change.")]
    panels: dict[str | None, list[str]] = {}
    for name in names:
        if values.get(name) is None:
            panels.setdefault(declarations(TrainConfig)[name].panel, []).append(name)
    for panel, others in panels.items():
        lines += ["", f"# {panel}".ljust(WIDTH, "-").replace("-", " ", 1) if panel else "# Others"]
        for name in others:
            default = TrainConfig.default(name)
            lines += ["", *_comment(str(TrainConfig.model_fields[name].description))]
            lines.append(f"# {name} = {'...' if default is None else _toml(default)}")
    return "\n".join(lines) + "\n"


def _is_changed_by_recipe(name: str, settled: TrainConfig) -> bool:
    return (
        settled.recipe is not None and name in Recipe.model_fields and getattr(settled, name) != settled.default(name)
    )


def _comment(text: str) -> list[str]:
    return [f"# {line}" for part in text.splitlines() for line in textwrap.wrap(part, WIDTH)]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)  # which TOML's basic strings are too
