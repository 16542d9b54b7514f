"""`resnet-ops evaluate`: evaluates a network on labeled images, and shows the worst classes and confusions."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from resnet_ops.config_base import quoted
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.formatting import percent

from .config_options import Debug, Json, Options, options_of, runs_dir_option
from .console import Output, err, literal, report_error, short, table, warn
from .startup import check_network, importing, process_started_at

if TYPE_CHECKING:
    from resnet_ops.evaluation.results import ClassificationError, EvaluateResult

OPTIONAL = ("F1", "precision", "images")  # columns, left out in this order in a narrow terminal
SUSPECT_COLUMNS = ("label", "more likely", ">probability", ">of the label", "suspected wrong labels")
WORST = 5  # classes and confusions that are shown
SUSPECTS = 20  # to suggest
EXAMPLES = """
resnet-ops evaluate mine  # the best weights of run 'mine' on its test images, or its validation images
resnet-ops evaluate mine --data flowers/test --expect 95  # on other images; exits with 1 if below 95%
resnet-ops evaluate runs/mine/export/model.onnx --data flowers/test  # an exported file, in ONNX Runtime
resnet-ops evaluate mine --split val --suspects 20  # images whose labels may be wrong
resnet-ops evaluate resnet50.pth --classes imagenet.txt --data imagenet/val
"""


@options_of(EvaluateConfig)
def evaluate(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Evaluate a run, a file of weights or an exported file on labeled images: metrics per class, calibration.

    It says whether the network was trained on these images, or its epoch chosen on them. The folder that it writes,
    runs/NAME/evaluation-SPLIT, holds a page, the metrics as JSON and Markdown, and the predictions for all images as
    CSV. The accuracy of a run on its own test images is recorded in the run.
    """
    output = Output(json)
    config = options.make(EvaluateConfig)
    check_network(config.run, config.model, config.runs_dir)
    status = err.status("Evaluating", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.evaluation import job as library

        def progress(done: int, total: int) -> None:
            status.update(f"Evaluating: {done:,} of {total:,} images")

        result = library.evaluate(config, warn, progress, process_started_at())
    _show(output, config, result)
    missed = result.expectation is not None and not result.expectation.met
    if missed:
        refusal = UserError(library.expectation_text(result), exit_code=WORK_FAILED)
        report_error(refusal, WORK_FAILED, as_json=False, debug=debug)
    elif result.expectation is not None:
        output.show(f"[bold green]Passed:[/] {escape(library.expectation_text(result))}")
    output.end(result)
    if missed:
        raise typer.Exit(WORK_FAILED)


def _show(output: Output, config: EvaluateConfig, result: "EvaluateResult") -> None:
    interval = f"{percent(result.top1_low)} to {percent(result.top1_high)}"
    top5 = "" if result.top5 is None else f", top-5 {percent(result.top5)}"
    output.show(
        f"[bold]{percent(result.top1)}[/] accuracy ({interval}): {literal(result.network_text)} on "
        f"{literal(result.images_text)}",
        f"[bold]{result.seen[0].upper()}{result.seen[1:]}.[/]",
    )
    output.warn_of(result.majority_baseline)
    output.show(
        f"macro F1 {percent(result.macro_f1)}, macro recall {percent(result.macro_recall)}{top5}, calibration error "
        f"{percent(result.expected_calibration_error)}, negative log likelihood "
        f"{result.negative_log_likelihood:.3g}",
    )
    worst = [each for each in result.worst_classes if each.correct < each.images or each.predicted > each.correct]
    if worst:
        columns = ("worst classes", ">images", ">recall", "95% interval", ">precision", ">F1")
        cells = []
        for each in worst[:WORST]:
            low_to_high = f"[dim]{percent(each.recall_low or 0, 1)} to {percent(each.recall_high or 0, 1)}[/]"
            precision = "" if each.precision is None else percent(each.precision)
            figures = f"{each.images:,}", percent(each.recall or 0), low_to_high, precision, percent(each.f1 or 0)
            cells.append([literal(each.name), *figures])
        output.show("")
        output.show_table(columns, cells, OPTIONAL, ("worst classes",))
    if result.confusions:
        support = {each.name: each.images for each in result.classes}
        rows = table("most often confused", "with", ">images")
        for pair in result.confusions[:WORST]:
            rows.add_row(literal(pair.label), literal(pair.prediction), f"{pair.images:,} of {support[pair.label]:,}")
        output.show("", rows)
    if result.suspects:
        output.show("")
        output.show_table(SUSPECT_COLUMNS, map(_suspect_cells, result.suspects), ("of the label", "probability"))
        output.show(f"[dim]{len(result.suspects):,} of {result.label_issues:,} label issues[/]")
    recorded = "  recorded as the test accuracy of the run" if result.recorded else ""
    output.show(
        "",
        f"[bold green]Written:[/] {escape(short(result.page))}  [dim]{result.images_per_second:,.0f} images/s[/]",
        *([recorded] if recorded else []),
        *_next(config, result),
    )


def _suspect_cells(issue: "ClassificationError") -> list[str]:
    labels = literal(issue.label), literal(issue.prediction)
    return [*labels, percent(issue.probability), percent(issue.label_probability), escape(short(Path(issue.path)))]


def _next(config: EvaluateConfig, result: "EvaluateResult") -> list[str]:
    """Return what to do next, in lines."""
    lines = []
    if result.label_issues and not config.suspects:
        mistakes = f"{result.label_issues:,} mistake{'s' if result.label_issues > 1 else ''}"
        lines.append(f"  {mistakes} may be wrong labels, or hard images: --suspects {SUSPECTS} shows them")
    if result.kind == "run":
        lines.append(
            f"  next  resnet-ops report {escape(quoted(config.run))} -o report.html"
            f"{escape(runs_dir_option(config.runs_dir.absolute()))}"
        )
    return lines
