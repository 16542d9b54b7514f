"""`resnet-ops recipes`: named ways to train, to read and to copy."""

from typing import Annotated

import typer

from resnet_ops.recipes import reading

from .console import Output, table
from .options import Debug, Json

EXAMPLES = """
[bold]resnet-ops recipes fast > mine.toml[/]  a copy to change

[bold]resnet-ops train --recipe mine.toml --epochs 10[/]  what is typed goes first
"""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to print.", metavar="NAME", show_default=False)] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes for `train --recipe`, or print one."""
    output = Output(json)
    if name is not None:
        output.show(reading.text(name).rstrip())
        output.end({"name": name, "options": reading.read(name)})
        return
    shown = table("recipe", "description")
    for each in reading.names():
        shown.add_row(each, reading.description(each))
    output.show(shown, "Print one: resnet-ops recipes fast")
    output.end({"recipes": [{"name": each, "description": reading.description(each)} for each in reading.names()]})
