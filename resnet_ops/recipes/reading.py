"""Finds and reads recipes: those that ship here, by name, and anybody's TOML files, by path.

A recipe that ships here holds how to train (`Recipe`); a file may hold any option of a training.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resnet_ops.config import Recipe, TrainConfig
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.options import explain
from resnet_ops.results import Result

FOLDER = Path(__file__).parent


class RecipeOptions(Result):
    """The options in a recipe."""

    name: str
    options: dict[str, Any]


class RecipeDescription(Result):
    """What a recipe does."""

    name: str
    description: str


class RecipeList(Result):
    """The recipes that ship here."""

    recipes: tuple[RecipeDescription, ...]


def names() -> list[str]:
    """The recipes that ship here."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def text(name: str) -> str:
    """The file of a recipe that ships here.

    Raises:
        UserError: There is none of that name.
    """
    return _file(name).read_text(encoding="utf-8")


def description(name: str) -> str:
    """Its first line."""
    return text(name).partition("\n")[0].removeprefix("# ")


def listed() -> RecipeList:
    """List the recipes that ship here."""
    return RecipeList(recipes=tuple(RecipeDescription(name=each, description=description(each)) for each in names()))


def configure(**given: Any) -> TrainConfig:
    """Make a configuration of the options given, and of those of its `recipe` that are not.

    Raises:
        UserError: There is no such recipe, or an option is wrong.
    """
    recipe = given.get("recipe")
    return TrainConfig.of(**{**(read(recipe) if recipe else {}), **given})


def read(recipe: str) -> dict[str, Any]:
    """The options in a recipe.

    Args:
        recipe: The name of one that ships here, or the path of a file that ends with .toml, which
            may in turn name such a one as its `recipe` to begin with.

    Raises:
        UserError: It is not there, it is not TOML, or it holds what is no option; says where.
    """
    if not recipe.endswith(".toml"):
        return _parse(_file(recipe), Recipe)
    options = _parse(Path(recipe).expanduser(), TrainConfig)
    base = options.pop("recipe", None)
    return {**_parse(_file(base), Recipe), **options} if base else options


def _file(name: str) -> Path:
    if name not in names():
        raise UserError(
            f"Unknown recipe {name!r}.",
            f"{did_you_mean(name, names())} Available: {', '.join(names())}; or give the path of a .toml file.",
        )
    return FOLDER / f"{name}.toml"


def _parse(path: Path, holds: type[Recipe]) -> dict[str, Any]:
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read: {error.strerror}.", "Check its path.") from None
    except ValueError as error:  # not TOML, or not even text; says in which line
        raise UserError(f"{path} is not TOML: {error}.", "See https://toml.io for the syntax.") from None
    try:
        # Strict: on the command line all is text, but here "30" is not 30. By way of JSON, where a path is text.
        holds.model_validate_json(json.dumps(options, default=str), strict=True)
    except ValidationError as error:
        raise explain(holds, error, path) from None
    return options
