"""`resnet-ops data`: checks a dataset before training on it, and shows statistics and problems."""

import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

from resnet_ops.config import DataConfig, ImagesConfig
from resnet_ops.config_base import as_options, option
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.files import write_atomically
from resnet_ops.formatting import image_size, size

from .config_options import Debug, Json, Options, options_of
from .console import Bar, Output, err, image_counts, short, table
from .help import Command, Group

if TYPE_CHECKING:
    from resnet_ops.data.audit import DataReport

EXAMPLES = """
resnet-ops data check ~/images  # a folder with one subfolder per class, or with train/ and val/
resnet-ops data check cifar10 --contact-sheet cifar10.png  # with a picture of examples of each class
resnet-ops data check s3://bucket/images --strict --json  # before a nightly training
"""
MARKS = {"ok": "[green]ok[/]", "note": "[cyan]note[/]", "warning": "[yellow]warning[/]", "error": "[bold red]error[/]"}
MOST_CLASSES, EXTREMES, BAR = 20, 5, 24  # classes to list; largest and smallest ones of more; width of the longest bar

app = typer.Typer(cls=Group, add_completion=False, help="Inspect datasets.")


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Inspect datasets."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class CheckedImagesConfig(ImagesConfig):
    """The images to check, which must be given."""

    data: str = option(str(ImagesConfig.model_fields["data"].description))


@app.command("check", cls=Command, epilog=EXAMPLES)
@options_of(CheckedImagesConfig)
def check(
    options: Options,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw examples of each class, one row per class, at most 20 classes."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Read every image of a dataset and report problems before training does.

    Exits with 1 for an error: the dataset cannot be trained on, an image cannot be
    decoded and would be skipped, or the same image has two labels. Whatever makes
    results worse or less reliable is a warning: validation images that are also used
    for training or look like training images, duplicates, classes with very few images, blank images, lost
    colors, too little disk space. Warnings exit with 1 only with --strict, notes never do.
    """
    output = Output(json)
    config = DataConfig.of(**options.typed(CheckedImagesConfig))
    _check_file(contact_sheet)
    with _progress() as progress:
        task = progress.add_task("Looking for images", total=None)
        from resnet_ops.data import audit as library
        from resnet_ops.data import contact_sheet as sheet

        def on_progress(done: int, total: int) -> None:
            progress.update(task, description="Reading images", completed=done, total=total)

        examples = {"choose_examples": sheet.choose_examples} if contact_sheet else {}
        report = library.check_data(config, on_progress, strict=strict, **examples)
    _show(output, report)
    if contact_sheet:
        _draw(contact_sheet, report)
        report = report.model_copy(update={"contact_sheet": contact_sheet.absolute()})
        output.show(f"Contact sheet: {escape(short(contact_sheet.absolute()))}")
    output.show(_verdict(report))
    if report.fit:
        typed = as_options(options.typed(CheckedImagesConfig))
        images = shlex.join(word for each in typed for word in each.split("=", 1))
        output.show(f"  next  resnet-ops train {escape(images)} --name NAME")
    output.end(report)
    if not report.fit:
        raise typer.Exit(WORK_FAILED)


def _check_file(contact_sheet: Path | None) -> None:
    if contact_sheet is None:
        return
    if contact_sheet.suffix.lower() != ".png":
        raise UserError(f"--contact-sheet {contact_sheet} is not a PNG.", "Use a file name ending in .png.")
    if not contact_sheet.absolute().parent.is_dir():
        raise UserError(f"--contact-sheet {contact_sheet}: its folder does not exist.", "Create it, or choose another.")


def _progress() -> Bar:
    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=err,
        transient=True,
        expand=True,
        disable=not err.is_live,
    )


def _show(output: Output, report: "DataReport") -> None:
    held_out = ""
    if report.held_out:
        held_out = f", a {'tenth' if report.images[2] else 'fifth'} of each class held out for validation"
    classes = "1 class" if len(report.class_names) == 1 else f"{len(report.class_names):,} classes"
    output.show(
        f"[bold]{escape(report.name)}[/]: {image_counts(*report.images)}{held_out}; {classes}",
        "",
        _class_table(report),
        "",
        _facts(report),
        "",
    )
    _show_findings(output, report)


def _class_table(report: "DataReport") -> Any:
    test = report.images[2]
    lines = table("class", ">training", ">validation", *([">test"] if test else []), "")
    rows: list[str | None] = list(report.class_names)
    if len(rows) > MOST_CLASSES:
        by_size = sorted(report.class_names, key=lambda name: -report.per_class[name].train)
        rows = [*by_size[:EXTREMES], None, *by_size[-EXTREMES:]]
    most = max([1, *(images.train for images in report.per_class.values())])
    for name in rows:
        if name is None:
            lines.add_row(f"[dim]... {len(report.class_names) - 2 * EXTREMES:,} between ...[/]")
            continue
        images = report.per_class[name]
        bar = "█" * round(BAR * images.train / most) or ("▏" if images.train else "")
        counts = [images.train, images.val, *([images.test] if test else [])]
        lines.add_row(escape(name), *(f"{count:,}" for count in counts), f"[cyan]{bar}[/]")
    return lines


def _facts(report: "DataReport") -> Any:
    facts = table("", "")
    facts.show_header = False
    sizes = [f"{width}x{height}" for height, width in report.sizes]
    spread = "all" if report.distinct_sizes == 1 else f"{report.distinct_sizes:,} different sizes"
    if sizes:
        least, median, greatest = sizes
        text = f"{least}, {spread}" if least == greatest else f"{least} to {greatest}, median {median}, {spread}"
        facts.add_row("sizes", text)
    facts.add_row("formats", _counts(report.formats))
    facts.add_row("modes", _counts(report.modes))
    color = "grey" if report.channels == 1 else "color"
    crop = f", cropped from {report.stored[0]}x{report.stored[1]}" if report.stored else ", not resized"
    facts.add_row("network input", f"{image_size(report.height, report.width)} {color}{crop}")
    facts.add_row("mean", ", ".join(f"{mean:.4f}" for mean in report.mean))
    facts.add_row("std", ", ".join(f"{std:.4f}" for std in report.std))
    storage = "streamed" if report.streamed else f"kept in {escape(str(report.cache or 'memory'))}"
    facts.add_row("bytes", f"{size(report.encoded_bytes)} encoded, {size(report.decoded_bytes)} decoded and {storage}")
    if report.fingerprint:
        facts.add_row("fingerprint", report.fingerprint[:16])
    return facts


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _show_findings(output: Output, report: "DataReport") -> None:
    """Show a row for each finding and a line for each of its details; a table would break the paths."""
    state = max(len(finding.state) for finding in report.findings)
    name = max(len(finding.name) for finding in report.findings)
    for finding in report.findings:
        pad = " " * (state - len(finding.state))
        row = f"{MARKS[finding.state]}{pad}  {finding.name:{name}}  {escape(finding.summary)}"
        output.show_row(row, hang=state + name + 4)
        for detail in finding.details:
            output.show_detail(detail, indent=state + 2)


def _verdict(report: "DataReport") -> str:
    verdicts = [
        f"[bold {color}]{title}:[/] {', '.join(finding.name for finding in findings)}"
        for title, color, findings in (
            ("Errors", "red", report.having("error")),
            ("Warnings", "yellow", report.having("warning")),
        )
        if findings
    ]
    return ". ".join(verdicts) or "[bold green]No problems found.[/]"


def _draw(file: Path, report: "DataReport") -> None:
    from resnet_ops.data.contact_sheet import COLUMNS, SheetRow, draw_contact_sheet

    counts = {name: images.train + images.val + images.test for name, images in report.per_class.items()}
    rows = [SheetRow(name, f"{counts[name]:,}", images) for name, images in report.examples.items()]
    near = report.near_examples
    rows += [
        SheetRow("near duplicates", "pair after pair", near[start : start + COLUMNS])
        for start in range(0, len(near), COLUMNS)
    ]
    classes = f"{len(report.class_names):,} classes, {image_size(report.height, report.width)}"
    subtitle = f"{image_counts(*report.images)} of {classes}"
    left_out = len(report.class_names) - len(report.examples)
    foot = f"{left_out:,} more classes" if left_out else ""
    buffer = io.BytesIO()
    draw_contact_sheet(report.name, subtitle, rows, foot).save(buffer, format="PNG", optimize=True)
    write_atomically(file, buffer.getvalue())
