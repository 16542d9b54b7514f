"""`resnet-ops recipes`: named ways to train, to read and to copy."""

from typing import Annotated

import typer

from resnet_ops.recipes import reading

from .console import Output, table
from .options import Debug, Json

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
    shown = table("recipe", "description")
    recipe_list = reading.list_recipes()
    for each in recipe_list.recipes:
        shown.add_row(each.name, each.description)
    output.show(shown, "Print one: resnet-ops recipes fast")
    output.end(recipe_list)
