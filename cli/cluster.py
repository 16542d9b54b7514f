"""`resnet-ops cluster`: the commands about clusters, gathered."""

import typer

from . import local, status, template
from .help import Command, Group

app = typer.Typer(cls=Group, help="Create and inspect Ray clusters.")
app.command("up", cls=Command, epilog=local.UP_EXAMPLES)(local.up)
app.command("status", cls=Command)(status.status)
app.command("down", cls=Command)(local.down)
app.command("template", cls=Command, epilog=template.EXAMPLES)(template.template)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Create and inspect Ray clusters."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
