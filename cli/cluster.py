"""`resnet-ops cluster`: the commands about clusters, gathered."""

import typer

from . import local, status, template

app = typer.Typer(rich_markup_mode="rich", help="Get a Ray cluster to train on.")
app.command("up", epilog=local.UP_EXAMPLES)(local.up)
app.command("status")(status.status)
app.command("down")(local.down)
app.command("template", epilog=template.EXAMPLES)(template.template)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Get a Ray cluster to train on."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
