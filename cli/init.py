"""`resnet-ops init`: writes a recipe for the images at hand, to be read and edited."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops.config import TrainConfig
from resnet_ops.training.observer import Observer

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, short, show_rows, warn
from .startup import importing

EXAMPLES = """
resnet-ops init --data photos  # writes train.toml
resnet-ops init --data photos --weights imagenet --output mine.toml
resnet-ops train --recipe train.toml
"""
ASKED = ("data", "val_data", "test_fraction", "image_size", "resize", "model", "weights", "optimizer")


class Notes(Observer):
    """Prints notes."""

    def warn(self, message: str) -> None:
        warn(message)


@options_of((TrainConfig, ASKED))
def init(
    options: Options,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.toml", help="File to write.")] = Path(
        "train.toml"
    ),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a recipe for your images: what `train` would choose and why, and every other option as a comment."""
    out = Output(json)
    config = options.make(TrainConfig)
    with err.status("Looking at the images", spinner="dots") if err.is_live else err:
        with importing():
            from resnet_ops.training.recipe_file import write_recipe

        result = write_recipe(output, config, Notes())
    show_rows(out.out, [("network", result.model), *result.choices.items()])
    if result.hint:
        out.show(f"[green]hint:[/] {escape(result.hint)}")
    out.show(
        f"[bold green]Written:[/] {escape(short(result.recipe))}",
        f"  next  resnet-ops train --recipe {escape(short(result.recipe))}",
    )
    out.end(result)
