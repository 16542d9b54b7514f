"""`resnet-ops recipes`: lists the recipes for `train --recipe`, or shows one to copy."""

from typing import Annotated

import typer

from resnet_ops.recipes import reading

from .config_options import Debug, Json
from .console import Output, table

EXAMPLES = """
resnet-ops recipes fast > mine.toml  # a copy to edit
resnet-ops train --recipe mine.toml --epochs 10  # command-line options override the recipe
"""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to show.", metavar="NAME", show_default=False)] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes for `train --recipe`, or show one."""
    output = Output(json)
    if name is not None:
        output.show(reading.recipe_text(name).rstrip())
        output.end(reading.RecipeOptions(name=name, options=reading.read_recipe(name)))
        return
    rows, result = table("recipe", "description"), reading.list_recipes()
    for recipe in result.recipes:
        rows.add_row(recipe.name, recipe.description)
    output.show(rows, "Print one: resnet-ops recipes fast")
    output.end(result)
