"""Find and read recipes: those that ship with this package, by name, and users' TOML files, by path.

A recipe that ships holds fields of `Recipe` only; a user's file may hold any option of `TrainConfig`.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resnet_ops.config import TrainConfig
from resnet_ops.config_base import explain
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import decode_text
from resnet_ops.recipe_config import OF_THE_OPTIMIZER, Recipe
from resnet_ops.results import Result

FOLDER = Path(__file__).parent


class RecipeOptions(Result):
    """A recipe's options."""

    name: str
    options: dict[str, Any]


class RecipeDescription(Result):
    """A recipe's name and what it is for."""

    name: str
    description: str


class RecipeList(Result):
    """The recipes that ship with this package."""

    recipes: tuple[RecipeDescription, ...]


def configure(**options: Any) -> TrainConfig:
    """Make a configuration of these options, and of those of their `recipe` that are not among them or against them.

    Where they name another optimizer than the recipe's, its learning rate and what else belongs to it is left out.
    The batch size of a recipe that ships, and the learning rate for it, are defaults: few images lessen them together.

    Raises:
        UserError: There is no such recipe, or an option is wrong.
    """
    recipe = options.get("recipe")
    values = _beside(read_recipe(recipe), options) if recipe else {}
    config = TrainConfig.of(**values | options)
    if "batch_size" in values and recipe in recipe_names():
        config.model_fields_set.difference_update({"batch_size", "lr"} - options.keys())
    return config


def usual_batch_size(recipe: str | None) -> int:
    """Return the batch size that a learning rate is for which a recipe, or nothing, gives."""
    options = read_recipe(recipe) if recipe in recipe_names() else {}
    return int(options.get("batch_size", TrainConfig.default("batch_size")))


def _beside(recipe: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a recipe has that does not go with the options beside it, which count."""
    against = {
        "warmup_ratio": options.get("schedule") == "one-cycle",  # which has its own
        "warmup_steps": options.get("schedule") == "one-cycle",
        "nesterov": options.get("momentum") == 0,
        "random_resized_crop": bool(options.get("crop_padding")),  # the other way to crop
        "trivial_augment": bool(options.get("rand_augment")),  # two policies of the same operations
        "rand_augment": bool(options.get("trivial_augment")),
    }
    optimizer = recipe.get("optimizer", TrainConfig.default("optimizer"))
    if options.get("optimizer", optimizer) != optimizer:
        against |= dict.fromkeys(OF_THE_OPTIMIZER, True)
    return {name: value for name, value in recipe.items() if not against.get(name)}


def read_recipe(recipe: str) -> dict[str, Any]:
    """Read the options of a recipe.

    Args:
        recipe: The name of one that ships with this package, or the path of a file that ends with .toml; the file may
            name such a one as its own `recipe`, whose options it overrides.

    Raises:
        UserError: It does not exist, it is not TOML, or it holds something that is no option; says where.
    """
    if not recipe.endswith(".toml"):
        return _parse(_shipped_file(recipe), Recipe)
    options = _parse(Path(recipe).expanduser(), TrainConfig)
    base = options.pop("recipe", None)
    return {**_parse(_shipped_file(base), Recipe), **options} if base else options


def list_recipes() -> RecipeList:
    """List the recipes that ship with this package."""
    return RecipeList(
        recipes=tuple(RecipeDescription(name=name, description=describe(name)) for name in recipe_names())
    )


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """Return the file of a recipe that ships with this package.

    Raises:
        UserError: There is none of that name.
    """
    return _shipped_file(name).read_text(encoding="utf-8")


def describe(name: str) -> str:
    """Return the first line of a recipe."""
    return recipe_text(name).partition("\n")[0].removeprefix("# ")


def _shipped_file(name: str) -> Path:
    names = recipe_names()
    if name not in names:
        raise UserError(
            f"Unknown recipe {name!r}.",
            f"{did_you_mean(name, names)} Available: {', '.join(names)}; or give the path of a .toml file.",
        )
    return FOLDER / f"{name}.toml"


def _parse(path: Path, schema: type[Recipe]) -> dict[str, Any]:
    try:
        options = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read: {error.strerror}.", "Check its path.") from None
    except ValueError as error:  # not TOML, or not even text; says in which line
        raise UserError(f"{path} is not TOML: {error}.", "See https://toml.io for the syntax.") from None
    try:
        # Strict: the command line is all text, but here "30" is not 30. By way of JSON, in which a path is text.
        schema.model_validate_json(json.dumps(options, default=str), strict=True)
    except ValidationError as error:
        raise explain(schema, error, path) from None
    return options
