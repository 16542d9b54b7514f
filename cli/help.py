"""The layout of `--help`: an option's names and value in one column, never truncated; examples in a panel of their own.

Typer's own table has a column each for names, opposites (`--no-...`) and types, which leaves no room in 80 columns.
"""

from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from resnet_ops.errors import UserError

WIDEST_NAME = 26


class Command(TyperCommand):
    """A command with this layout of `--help`, which says what an argument too many may have been meant for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command.

        Raises:
            UserError: There are too many.
        """
        ctx.allow_extra_args = True
        extra = super().parse_args(ctx, args)
        if extra and not ctx.resilient_parsing:
            from resnet_ops.config import did_you_mean_data

            takes_data = any("--data" in parameter.opts for parameter in self.params)
            meant = did_you_mean_data(extra) if takes_data else ""
            name = ctx.command_path
            raise UserError(f"{name} takes no argument {extra[0]}.", meant or f"See {name} --help.")
        return extra

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the help."""
        _show(self, ctx)


class Group(TyperGroup):
    """A group of commands with this layout of `--help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the help."""
        _show(self, ctx)

    def summaries(self, context: typer.Context) -> Iterator[tuple[str, str, str]]:
        """Yield heading, name and summary of each command."""
        for name in self.list_commands(context):
            command: Any = self.get_command(context, name)
            yield command.rich_help_panel or "Commands", name, paragraphs(command.help or "")[0]


def _show(command: Any, context: typer.Context) -> None:
    console = Console(highlight=False)
    console.print(Text(command.get_usage(context), "bold"))
    for text in paragraphs(command.help or ""):
        console.print()
        console.print(_prose(text))
    console.print()
    for title, rows in _panels(command, context).items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for row in rows:
            table.add_row(*row)
        console.print(Panel(table, title=title, title_align="left", border_style="dim"))
    if command.epilog:
        lines = Text("\n").join(_examples(command.epilog))
        console.print(Panel(lines, title="Examples", title_align="left", border_style="dim"))


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a help text, each as one line."""
    return [" ".join(each.split()) for each in text.strip().split("\n\n")]


def examples(epilog: str) -> Iterator[tuple[str, str]]:
    """Yield the examples at the end of a help text, one a line: the command, and what it does."""
    for line in epilog.strip().splitlines():
        command, _, comment = line.partition("  # ")
        yield command.strip(), comment.strip()


def _examples(epilog: str) -> Iterator[Text]:
    for command, comment in examples(epilog):
        if comment:
            yield Text(f"# {comment}", "dim")
        yield Text(command, "bold")


def _panels(command: Any, context: typer.Context) -> dict[str, list[tuple[Text, Text]]]:
    panels: dict[str, list[tuple[Text, Text]]] = {"Arguments": []}
    for heading, name, summary in command.summaries(context) if isinstance(command, Group) else ():
        panels.setdefault(heading, []).append((Text(name, "bold cyan"), _prose(summary)))
    for parameter in command.get_params(context):
        is_argument = parameter.param_type_name == "argument"
        title = "Arguments" if is_argument else parameter.rich_help_panel or "Options"
        panels.setdefault(title, []).append((_name(parameter), _help(parameter)))
    return {title: rows for title, rows in panels.items() if rows}


def _name(parameter: Any) -> Text:
    """Return names and value of a parameter, in as many lines as it takes to keep each whole."""
    names = [*sorted(parameter.opts, key=len, reverse=True), *parameter.secondary_opts]
    parts = [(each, "bold cyan") for each in names if each.startswith("-")]
    if parameter.param_type_name == "argument" or not parameter.is_flag:
        choices = (parameter.metavar or "").split("|")
        parts += [(each + "|", "yellow") for each in choices[:-1]] + [(choices[-1], "yellow")]
    name, width = Text(), 0
    for part, style in parts:
        comes_after_choice = name.plain.endswith("|")
        if width and width + len(part) + (not comes_after_choice) > WIDEST_NAME:
            name.append("\n  " if style == "yellow" else "\n")
            width = 2 if style == "yellow" else 0
        elif width and not comes_after_choice:
            name.append(" ")
            width += 1
        name.append(part, style)
        width += len(part)
    return name


def _help(parameter: Any) -> Text:
    text = _prose(parameter.help or "")
    if parameter.envvar:
        text.append(f" [env: {parameter.envvar}]", "dim")
    if parameter.required:
        text.append(" [required]", "red")
    elif parameter.show_default and parameter.default is True:
        text.append(" [default: on]", "dim")
    elif parameter.show_default and parameter.default is not None and parameter.default is not False:
        default = parameter.default
        text.append(f" [default: {f'{default:g}' if isinstance(default, float) else default}]", "dim")
    return text


def _prose(text: str) -> Text:
    prose = Text(text)
    prose.highlight_regex(r"(?<![\w-])--[a-z][a-z-]*", "cyan")
    return prose
