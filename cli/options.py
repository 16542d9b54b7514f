"""Options made from the fields of a configuration: help, choices and default are said once, there."""

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.files import to_path
from resnet_ops.options import Config

from .console import short

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line; all else goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def option(config: type[Config], name: str, panel: str | None = None, *declarations: str) -> Any:
    """Make the command-line option for field `name` of `config`."""
    choices, default = config.choices(name), config.default(name)
    is_switch = isinstance(default, bool)
    # In 80 columns the names of switches and of their opposites leave no room for anything that says nothing.
    metavar = f"[{'|'.join(choices)}]" if choices else " " if is_switch else None
    return typer.Option(
        *declarations,
        help=config.model_fields[name].description,
        metavar=metavar,
        rich_help_panel=panel,
        show_default=default is not None and not is_switch,
        envvar="RESNET_OPS_RUNS_DIR" if name == "runs_dir" else None,
        parser=_place if name == "runs_dir" else None,
    )


def argument(config: type[Config], name: str) -> Any:
    """Make the command-line argument for field `name` of `config`."""
    return typer.Argument(help=config.model_fields[name].description, metavar=name.upper())


def given(context: typer.Context, *sources: str) -> set[str]:
    """The options that the user gave: on the command line, or in the environment."""
    names = [parameter.name or "" for parameter in context.command.params]
    found = {name: context.get_parameter_source(name) for name in names}
    wanted = sources or ("COMMANDLINE", "ENVIRONMENT")
    return {name for name, source in found.items() if source is not None and source.name in wanted}


def runs_dir_option(runs_dir: Path) -> str:
    """How to say where the runs are, where that is not where they usually are."""
    return "" if runs_dir == Path("runs").absolute() else f" --runs-dir {short(runs_dir)}"


def _place(typed: str) -> Path:
    """Typer's own way to a Path makes one slash of s3://."""
    try:
        return to_path(typed)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


RunsDir = option(TrainConfig, "runs_dir", "Run")
