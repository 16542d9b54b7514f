"""`resnet-ops diagnose`: explains another program's answers, and shows the hypotheses as a table."""

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.config import DiagnoseConfig
from resnet_ops.export.exported_files import with_exported_file

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, report_error, table, warn
from .startup import importing, process_started_at

if TYPE_CHECKING:
    from resnet_ops.export.diagnosis import DiagnoseResult, Hypothesis

EXAMPLES = """
resnet-ops diagnose model.onnx --outputs mine.csv --data val/  # why does my program answer otherwise?
resnet-ops diagnose runs/mine/export/model.onnx --outputs mine.csv  # on the validation images of its run
"""


@options_of(DiagnoseConfig)
def diagnose(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Find out why your own program gives other answers than an exported file: its preprocessing, nearly always.

    Faults such as BGR, a missing normalization or another resize are replayed with the file itself, alone and up to
    three at once, and the one that gives your program's answers is named. The exit code is 0 if the answers are equal
    or explained, 1 if not, or if it cannot be told from these answers.
    """
    output = Output(json)
    config = with_exported_file(options.make(DiagnoseConfig))
    status = err.status("Reading", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.export import diagnosis as library

        result = library.diagnose(config, status.update, process_started_at())
    if result.is_cut:
        warn(f"{result.outputs} is long: only its first lines were read.")
    if result.bad_lines:
        warn(f"Left out {len(result.bad_lines):,}, first {result.bad_lines[0]}.")
    _show_hypotheses(output, result)
    _show_verdict(output, result)
    if result.verdict == "unexplained":
        refusal = UserError(
            f"No fault explains the answers: {result.replayed:,} were tried, alone and combined.",
            f"Check that your program uses {config.file} itself, and compare the input that it makes of "
            f"{result.differing[0].path} number by number.",
            WORK_FAILED,
        )
        report_error(refusal, WORK_FAILED, as_json=False, debug=debug)
    if result.undecided:
        refusal = UserError(
            f"It cannot be told why the answers differ: {result.undecided}.",
            result.undecided_remedy or "",
            WORK_FAILED,
        )
        report_error(refusal, WORK_FAILED, as_json=False, debug=debug)
    output.end(result)
    if result.verdict in ("undecided", "unexplained"):
        raise typer.Exit(WORK_FAILED)


def _show_hypotheses(output: Output, result: "DiagnoseResult") -> None:
    has_values = result.kind != "classes"
    columns = ["your program", ">classes equal", *([">mean difference", ">largest"] if has_values else []), ""]
    kind = f"{result.kind}, read as {result.read_as}," if result.read_as else result.kind
    kind = kind if result.column is None else f"{kind} (column {escape(result.column)})"
    rows = table(*columns, title=f"{kind} of {result.images:,} images, replayed on {result.provider}")
    for one in result.hypotheses:
        mark = "[green]explains[/]" if one.explains and one.faults else "[green]equal[/]" if one.explains else ""
        values = [f"{one.mean_diff:.4f}", f"{one.max_diff:.4f}"] if has_values else []
        name = "\n  + ".join(map(escape, one.faults)) if one.faults else f"[dim]{one.name}[/]"
        rows.add_row(name, f"{one.equal:,} of {one.compared:,}", *values, mark)
    output.show(rows)


def _show_verdict(output: Output, result: "DiagnoseResult") -> None:
    best, ours = result.best, result.ours
    if result.verdict == "equal" and result.kind == "classes":
        near = "" if ours.equal == ours.compared else f", but for {ours.compared - ours.equal:,} near ties"
        output.show(f"[bold green]Equal:[/] no difference seen in {ours.compared:,} classes{near}.")
        output.show("[yellow]Classes alone hide small differences:[/] give probabilities to see them.")
    elif result.verdict == "equal":
        near = "" if ours.equal == ours.compared else ", the others near ties"
        output.show(f"[bold green]Equal:[/] {_equal(ours)}{near}; your program preprocesses as the file says.")
    elif result.verdict == "explained":
        output.show(
            f"[bold green]Explained:[/] {escape(result.explanation or best.name)}: {_equal(best)} "
            f"(our preprocessing: {_equal(ours)})"
        )
        for remedy in best.remedies:
            output.show(f"  change  {escape(remedy)}")
        if result.ties:
            names = "; ".join(escape(tie.name) for tie in result.ties)
            more = "more images" if result.kind != "classes" else "more images, or probabilities,"
            output.show(
                f"[yellow]As well by:[/] {names}. {result.telling:,} answers differ from ours; {more} would tell them "
                "apart."
            )
    elif result.verdict == "undecided" and best.faults:
        names = "; ".join(escape(one.name) for one in (best, *result.ties))
        output.show(f"[yellow]Possible:[/] {names}")
    if result.differing:
        has_values = result.kind != "classes"
        rows = table("image", ">line", "yours", "replayed", *([">difference"] if has_values else []))
        of_best = result.verdict == "explained"
        rows.title = f"first images that differ from {'the best of these' if of_best else 'our preprocessing'}"
        for image in result.differing:
            difference = [] if image.difference is None else [f"{image.difference:.4f}"]
            rows.add_row(escape(image.path), str(image.line), escape(image.theirs), escape(image.ours), *difference)
        output.show(rows)


def _equal(one: "Hypothesis") -> str:
    return f"{one.equal:,} of {one.compared:,} answers equal"
