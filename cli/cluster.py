"""`resnet-ops cluster`: the commands about clusters, gathered."""

import typer

from . import template

app = typer.Typer(
    rich_markup_mode="rich",
    no_args_is_help=True,
    help="Get a Ray cluster to train on.",
)
app.command("template", epilog=template.EXAMPLES)(template.template)
