"""Output of commands: tables and text for people, one JSON object for programs.

The result is printed on stdout, progress and messages on stderr. With --json the result is printed on stderr, too, and
the last line of stdout is its JSON.
"""

import json
import re
import sys
import textwrap
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.markup import escape
from rich.progress import Progress
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from resnet_ops.class_metrics import metric_text
from resnet_ops.errors import INTERRUPTED, PREEMPTED, UserError
from resnet_ops.formatting import percent, printable, readable, visible
from resnet_ops.orchestration.job_protocol import report_milestone
from resnet_ops.results import Result

if TYPE_CHECKING:
    from resnet_ops.class_metrics import MajorityBaseline
    from resnet_ops.config import Select
    from resnet_ops.orchestration.nodes import Node
    from resnet_ops.run_records import RunRecord
    from resnet_ops.runs import Run


COMMAND = re.compile(r"\b(?:resnet-ops|pip install|curl)(?: \S*[^\s.,;:?)])+")  # up to a word that ends a sentence
WHOLE = "\ue000"  # stands for a space at which a line is not broken
LABEL_WIDTH = 13  # characters of the labels of rows
CTRL_C = len("^C")  # characters of a line that the terminal itself has begun
UNLIMITED = 10_000  # characters, more than a table has


class WordConsole(Console):
    """A console that wraps sentences between words on a terminal; in a pipe, each stays one line."""

    changes_in_place = True  # False with --no-progress

    @property
    def is_live(self) -> bool:
        """Return whether what is shown may change in place, as bars do."""
        return self.is_terminal and self.changes_in_place and not self.quiet

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; `soft_wrap` marks a sentence, whose further lines are indented by `hang`."""
        hang, width = options.pop("hang", 0), options.get("width") or self.width
        if options.get("soft_wrap") and self.is_terminal:
            objects = tuple(_wrap(each, width, hang) if isinstance(each, str) else each for each in objects)
        super().print(*objects, **options)

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Render as rich does, with what names of classes, files and runs would command the terminal written out."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def _wrap(markup: str, width: int, hang: int = 0) -> Text:
    """Break between words; indented lines, commands and long words stay whole, to be copied."""
    text = Text.from_markup(markup)
    if text.plain.startswith(" ") or "\n" in text.plain:
        return text
    breaks, line_start, word_start = [], 0, 0
    for end in [*(space.start() for space in re.finditer(" ", _keep_commands(text.plain))), len(text)]:
        if end - line_start > width and word_start > line_start:
            breaks.append(word_start)
            line_start = word_start - hang
        word_start = end + 1
    lines = text.divide(breaks)
    for each in lines:
        each.rstrip()
    return Text("\n" + " " * hang).join(lines)


err = WordConsole(stderr=True, highlight=False)


class Bar(Progress):
    """A bar that leaves room at its end for the `^C` of the terminal.

    That would else wrap to a line of its own, so that the line above, no longer the bar's, would stay there.
    """

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar, narrower than the terminal."""
        yield Constrain(self.make_tasks_table(self.tasks), max(1, err.width - 2 * CTRL_C))


class Output:
    """The output of a command's result."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = err if as_json else WordConsole(highlight=False)

    def show(self, *renderables: Any) -> None:
        """Show part of the result."""
        for renderable in renderables:
            self.out.print(renderable, soft_wrap=isinstance(renderable, str))

    def warn_of(self, baseline: "MajorityBaseline | None", name: str = "") -> None:
        """Show that a network, or the one of a `name`, is no better than always answering one class, if it is not."""
        if baseline is not None and not baseline.beaten:
            self.show(f"[yellow]warning:[/] {escape(f'{name} is ' if name else '')}{escape(baseline.warning)}")

    def show_row(self, row: str, hang: int) -> None:
        """Show a row that ends in a sentence, whose further lines are indented by `hang`."""
        self.out.print(row, soft_wrap=True, hang=hang)

    def show_detail(self, detail: str, indent: int) -> None:
        """Show a line on paths, such as 'PATH = PATH' or 'PATH: REASON', indented; on a terminal no path is broken."""
        if self.out.is_terminal:
            paths, colon, reason = detail.partition(": ")
            paths = re.sub(r" (?!=|looks like )", WHOLE, paths)
            detail = _fill(paths + colon + reason, self.out.width - indent, "")
        self.out.print(escape(textwrap.indent(detail, " " * indent)), style="dim", soft_wrap=True)

    def show_table(
        self,
        columns: Sequence[str],
        cells: Iterable[Sequence[str]],
        optional: Sequence[str] = (),
        cut: Collection[str] = (),
    ) -> None:
        """Show a table, see `print_table`."""
        print_table(self.out, columns, cells, optional, cut)

    def end(self, result: Result) -> None:
        """Print the result as JSON, with --json."""
        if self.as_json:
            print_json(result.model_dump(mode="json"))


def print_json(result: dict[str, Any]) -> None:
    """Print one line of strict JSON on stdout."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    sys.stdout.flush()


def warn(message: str) -> None:
    """Print a note on stderr."""
    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)


def hint_line(text: str) -> None:
    """Print what would be plainly better, on stderr."""
    err.print(f"[green]hint:[/] {escape(text)}", soft_wrap=True)


def report_error(error: BaseException, exit_code: int, as_json: bool, debug: bool) -> None:
    """Print on stderr what went wrong and what to do: a line, or on a terminal two, wrapped between words."""
    if debug:
        traceback.print_exception(error)
    cause = error.cause if isinstance(error, UserError) else " ".join(str(error).split())
    remedy = error.remedy if isinstance(error, UserError) else ""
    status = {INTERRUPTED: "interrupted", PREEMPTED: "preempted"}.get(exit_code, "error")
    color = "\x1b[1;31m{}\x1b[0m" if err.is_terminal and not err.no_color else "{}"
    if as_json:
        report_milestone("ending")
    cause_line, remedy_line = (printable(readable(" ".join(text.split()))) for text in (cause, remedy))
    text = f"{cause_line} {remedy_line}".rstrip()
    if err.is_terminal:
        first = " " * len(f"{status}: ")  # in whose place the status comes, in color
        width = err.width - CTRL_C * (exit_code == INTERRUPTED)
        text = "\n".join(
            _fill(each, width, indent) for each, indent in ((cause_line, first), (remedy_line, "  ")) if each
        )
        text = text.removeprefix(first)
    # Not through rich, which would take [brackets] for markup.
    sys.stderr.write(f"{color.format(status)}: {text}\n")
    if as_json:
        details = error.details if isinstance(error, UserError) else {}
        print_json({"status": status, "exit_code": exit_code, "error": cause, "remedy": remedy, **details})


def _fill(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        _keep_commands(text),
        width,
        initial_indent=indent,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(WHOLE, " ")


def _keep_commands(text: str) -> str:
    """Return a text of the same length in which the spaces of commands to copy are no places to break a line."""
    return COMMAND.sub(lambda command: command[0].replace(" ", WHOLE), text)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in the common style; columns that start with '>' are aligned right."""
    rows = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        rows.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return rows


def table_to_cut(columns: Sequence[str], cells: Iterable[Sequence[str]], cut: Collection[str]) -> Table:
    """Return a table of which the columns in `cut` give way where it is too wide: their cells end in an ellipsis.

    Args:
        columns: As for `table`.
        cells: The cells of each row, as markup.
        cut: Names of columns.
    """
    rows = table(*columns)
    for column in rows.columns:
        column.no_wrap = column.header not in cut  # what may be wrapped is what rich makes narrower
        column.overflow, column.min_width = "ellipsis", len(str(column.header))
    for row in cells:
        texts = [Text.from_markup(cell) for cell in row]
        for text in texts:
            text.no_wrap, text.overflow = True, "ellipsis"
        rows.add_row(*texts)
    return rows


def print_table(
    console: Console,
    columns: Sequence[str],
    cells: Iterable[Sequence[str]],
    optional: Sequence[str] = (),
    cut: Collection[str] = (),
) -> None:
    """Print a table that fits into a terminal; in a pipe all of it.

    Args:
        console: Where it is printed.
        columns: As for `table`.
        cells: The cells of each row, as markup.
        optional: Columns to leave out, one after the other in this order, while the table is too wide.
        cut: Columns whose cells may end in an ellipsis, where that is not enough. The other cells stay whole, and
            without such columns the terminal breaks lines that are too long, so that each can be copied.
    """
    kept, rows = list(range(len(columns))), [list(row) for row in cells]
    names = [column.removeprefix(">") for column in columns]

    def build() -> tuple[Table, int]:
        fitting = table_to_cut([columns[n] for n in kept], ([row[n] for n in kept] for row in rows), cut)
        return fitting, console.measure(fitting, options=console.options.update(width=UNLIMITED)).maximum

    fitting, width = build()
    for name in optional if console.is_terminal else ():
        if width <= console.width:
            break
        kept = [n for n in kept if names[n] != name]
        fitting, width = build()
    if not console.is_terminal or not cut:
        fitting.width = width
    console.print(fitting, crop=fitting.width is None)


def literal(text: str) -> str:
    """Return markup that shows a text of unknown origin, such as the name of a class, in one line."""
    return escape(printable(text))


def show_rows(console: WordConsole, rows: Iterable[tuple[str, str]]) -> None:
    """Print rows of a label and a text, which is wrapped beside its label; in a pipe each is one line."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=LABEL_WIDTH, no_wrap=True, style="dim")
    grid.add_column()
    for label, text in rows:
        if not console.is_terminal:
            console.print(f"{label:<{LABEL_WIDTH}} {literal(text)}", soft_wrap=True)
        grid.add_row(label, literal(text))
    if console.is_terminal:
        console.print(grid)


def image_counts(train: int, val: int, test: int) -> str:
    """Return the numbers of images of each split in words: '1,438 training and 359 validation images'."""
    counts = {"training": train, "validation": val, "test": test}
    *others, last = [f"{count:,} {name}" for name, count in counts.items() if count] or ["0 training"]
    return f"{', '.join(others)} and {last} images" if others else f"{last} images"


def test_accuracy_line(accuracy: float, record: "RunRecord") -> str:
    """Return the line on the accuracy on test images."""
    return (
        f"[bold]{percent(accuracy)}[/] test accuracy: on {record.measured_images:,} images that nothing was chosen on"
    )


def unmeasured_images_line(run: "Run", more: str) -> str:
    """Return the line on test images that nothing has measured yet; `more` are options of the command that does."""
    record = run.read_as_written()
    # Of its own data no training has test images of their own; what others had of them, evaluate compares.
    before = record.start.lineage if record.start and record.config.test_fraction else ()
    saw = [each.origin for each in before if each.may_have_seen(record.data.fingerprint, run.held_out())]
    since = f"since it began from {record.start.origin}" if record.start else "so far"
    known = f"which {saw[0]} may have been trained on" if saw else f"untouched {since}"
    images = f"{record.data.test_images:,} images, {literal(known)}"
    return f"  test          {images}: resnet-ops evaluate {run.name}{more}"


def accuracy_cells(
    best: float | None, last: float | None, test: float | None, selected_by: "Select | None", metric: float | None
) -> list[str]:
    """Return the cells of the columns that `accuracy_legend` explains; `metric` is what `selected_by` names."""
    chosen, *others = ("" if accuracy is None else percent(accuracy) for accuracy in (best, last, test))
    if selected_by not in (None, "top1") and metric is not None:
        chosen += f" ({metric_text(selected_by, metric)})"
    return ["fit all" if selected_by is None else chosen, *others]


def accuracy_legend(fit_all: bool) -> list[str]:
    """Return what the accuracies of a table of runs are; `fit_all` if one of the runs is fitted on all images."""
    return [
        "[dim]chosen: validation accuracy of the best epoch, which was chosen on these same images: by accuracy, or by "
        "the metric in parentheses; last: validation accuracy of the last epoch; test: accuracy on test images, on "
        "which nothing was chosen[/]",
        *(["[dim]fit all: fitted on all images, so without a validation accuracy[/]"] if fit_all else []),
    ]


def short(path: Path) -> str:
    """Return a path as text, relative to the current folder if it lies there."""
    name = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return printable(readable(str(name)))


def ago(moment: datetime) -> str:
    """Return how long ago `moment` (with a time zone) was, such as '2 hours ago'."""
    seconds = max(0, (datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("min", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 and unit != 'min' else ''} ago"
    return "just now"


STATE_COLORS = {"alive": "green", "not answering": "bold red", "gone": "dim"}


def node_table(nodes: Iterable["Node"], states: Mapping[str, tuple[str, str]] | None = None) -> Table:
    """Return a table of nodes.

    Args:
        nodes: The nodes, a row each.
        states: Address and state of each node by its id, if known.
    """
    nodes = tuple(nodes)
    gpus = any(node.gpus for node in nodes)
    columns = ["node", *(["address"] if states else []), ">CPUs", ">free", *([">GPUs", ">free"] if gpus else [])]
    rows = table(*columns, *(["state"] if states else []))
    for node in nodes:
        amounts = [node.cpus, node.free_cpus, *([node.gpus, node.free_gpus] if gpus else [])]
        cells = [escape(node.name), *(f"{amount:g}" for amount in amounts)]
        if states:
            address, state = states[node.id]
            cells = [cells[0], address, *cells[1:], f"[{STATE_COLORS[state]}]{state}[/]"]
        rows.add_row(*cells)
    return rows
