"""What a command shows: tables and text for people, one JSON object for programs.

People read the result on stdout and follow the work on stderr. With --json the result too goes
to stderr, and stdout ends in one line of JSON.
"""

import json
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from resnet_ops.errors import UserError
from resnet_ops.orchestration.job_protocol import report_milestone
from resnet_ops.orchestration.nodes import Node
from resnet_ops.results import Result


class WordConsole(Console):
    """A console whose long sentences break between words on a terminal; a pipe gets each as one line."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; `soft_wrap` says that the text is a sentence."""
        if options.get("soft_wrap") and self.is_terminal:
            objects = tuple(_broken(each, self.width) if isinstance(each, str) else each for each in objects)
        super().print(*objects, **options)


def _broken(markup: str, width: int) -> Text:
    """Break between words; facts and commands, which are indented, stay whole for copying, and so do long words."""
    text = Text.from_markup(markup)
    if text.plain.startswith(" ") or "\n" in text.plain:
        return text
    breaks, line, word = [], 0, 0
    for end in [*(space.start() for space in re.finditer(" ", text.plain)), len(text)]:
        if end - line > width and word > line:
            breaks.append(word)
            line = word
        word = end + 1
    lines = text.divide(breaks)
    for each in lines:
        each.rstrip()
    return Text("\n").join(lines)


err = WordConsole(stderr=True, highlight=False)


class Output:
    """Where a command's result goes."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = err if as_json else WordConsole(highlight=False)

    def show(self, *renderables: Any) -> None:
        """Show part of the result."""
        for renderable in renderables:
            self.out.print(renderable, soft_wrap=isinstance(renderable, str))

    def end(self, result: Result) -> None:
        """Print the result as JSON, if that is wanted."""
        if self.as_json:
            print_json(result.model_dump(mode="json"))


def print_json(result: dict[str, Any]) -> None:
    """Print one line of strict JSON on stdout."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    sys.stdout.flush()


def report_error(error: BaseException, exit_code: int, as_json: bool, debug: bool) -> None:
    """Say in one line on stderr what went wrong and what to do."""
    if debug:
        traceback.print_exception(error)
    cause = error.cause if isinstance(error, UserError) else " ".join(str(error).split())
    remedy = error.remedy if isinstance(error, UserError) else ""
    word = "interrupted" if exit_code == 130 else "error"
    color = "\x1b[1;31m{}\x1b[0m" if err.is_terminal and not err.no_color else "{}"
    if as_json:
        report_milestone("ending")
    # Not through rich, which would wrap the line and take [brackets] for markup.
    sys.stderr.write(f"{color.format(word)}: {' '.join(f'{cause} {remedy}'.split())}\n")
    if as_json:
        details = error.details if isinstance(error, UserError) else {}
        print_json({"status": word, "exit_code": exit_code, "error": cause, "remedy": remedy, **details})


def table(*columns: str, title: str | None = None) -> Table:
    """Make an empty table in the house's style; columns that start with '>' are set to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def short(path: Path) -> str:
    """Write a path from here where that is possible."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def ago(moment: datetime) -> str:
    """Say how long ago `moment` (with a time zone) was."""
    seconds = max(0, (datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("min", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 and unit != 'min' else ''} ago"
    return "just now"


COLORS = {"alive": "green", "not answering": "bold red", "gone": "dim"}


def node_table(nodes: Iterable[Node], seen: Mapping[str, tuple[str, str]] | None = None) -> Table:
    """Make a table of machines.

    Args:
        nodes: The machines, a row each, in their order.
        seen: By a machine's id its address and state, where they are known.
    """
    nodes = tuple(nodes)
    gpus = any(node.gpus for node in nodes)
    columns = ["node", *(["address"] if seen else []), ">CPUs", ">free", *([">GPUs", ">free"] if gpus else [])]
    made = table(*columns, *(["state"] if seen else []))
    for node in nodes:
        amounts = [node.cpus, node.free_cpus, *([node.gpus, node.free_gpus] if gpus else [])]
        cells = [escape(node.name), *(f"{amount:g}" for amount in amounts)]
        if seen:
            address, state = seen[node.id]
            cells = [cells[0], address, *cells[1:], f"[{COLORS[state]}]{state}[/]"]
        made.add_row(*cells)
    return made
