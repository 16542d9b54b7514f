"""`resnet-ops predict`: classifies images with an exported file, and shows the classes as a table."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from resnet_ops.config_base import quoted
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.config import PredictConfig
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.formatting import percent, printable

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, hint_line, literal, report_error, short, table, warn
from .startup import importing, process_started_at

if TYPE_CHECKING:
    from resnet_ops.export.classifier import PredictResult

CLASSES = 10  # that the last line counts
EXAMPLES = """
resnet-ops predict model.onnx photo.jpg  # the most likely class
resnet-ops predict model.onnx folder/ --top 5  # all images in a folder, the five most likely classes each
resnet-ops predict my-run photos/ --output classes.csv  # as a table, for other programs
resnet-ops predict my-run photos/ --copy-to sorted  # as sorted/cat/1.jpg, sorted/dog/2.jpg...
resnet-ops predict model.onnx folder/ --json | jq '.predictions[] | [.path, .top[0].class]'
"""


@options_of(PredictConfig)
def predict(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Classify images with an exported ONNX file.

    Images that cannot be decoded are listed with the reason, and the others are classified; the exit code is then 1.
    """
    output = Output(json)
    config = with_exported_file(options.make(PredictConfig))
    status = err.status("Classifying", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.export import classifier as library
            from resnet_ops.export import prediction_files

        prediction_files.check_outputs(config.output, config.copy_to)

        def progress(done: int, total: int) -> None:
            status.update(f"Classifying: {done:,} of {total:,} images")

        result = library.predict(config, progress, process_started_at(), warn)
    if config.output is not None:
        prediction_files.write_table(config.output, result.predictions, config.top)
    if config.copy_to is not None:
        prediction_files.copy_images(config.copy_to, result.predictions)
    if config.output is None and config.copy_to is None:
        _show(output, result)
        if folder := _labeled_folder(config, result):
            evaluated = f"resnet-ops evaluate {quoted(config.file)} --data {quoted(folder)}"
            hint_line(f"{folder} has folders of classes: {evaluated} measures the accuracy")
    else:
        _show_counts(output, result)
        for written in (config.output, config.copy_to):
            if written is not None:
                output.show(f"Written: {escape(short(written.absolute()))}")
    if result.failed:
        first = next(prediction for prediction in result.predictions if prediction.error)
        refusal = UserError(
            f"{result.failed:,} of {result.images:,} images could not be read, such as {first.path}: {first.error}.",
            exit_code=WORK_FAILED,
        )
        report_error(refusal, WORK_FAILED, as_json=False, debug=debug)
    output.end(result)
    if result.failed:
        raise typer.Exit(WORK_FAILED)


def _show_counts(output: Output, result: "PredictResult") -> None:
    rows = table("class", ">images")
    counts = Counter(prediction.top[0].name for prediction in result.predictions if prediction.top)
    for name, count in counts.most_common():
        rows.add_row(literal(name), f"{count:,}")
    output.show(rows)


def _summary(result: "PredictResult") -> str:
    """Return how many images are of each class, in one line."""
    counts = Counter(prediction.top[0].name for prediction in result.predictions if prediction.top)
    listed = [f"{printable(name)} {count:,}" for name, count in counts.most_common(CLASSES)]
    more = [f"{len(counts) - CLASSES:,} more classes"] if len(counts) > CLASSES else []
    failed = [f"{result.failed:,} not read"] if result.failed else []
    return f"{result.images:,} images: {', '.join([*listed, *more, *failed])}"


def _labeled_folder(config: PredictConfig, result: "PredictResult") -> Path | None:
    """Return the given folder whose subfolders are called as classes that were predicted are; None without one."""
    classes = {likely.name for prediction in result.predictions for likely in prediction.top}
    for folder in config.images if len(config.images) == 1 else ():
        inner = [each.path for each in result.predictions if each.path.is_relative_to(folder)]
        if len(classes & {path.relative_to(folder).parent.name for path in inner}) > 1:
            return folder
    return None


def _show(output: Output, result: "PredictResult") -> None:
    rows = table("image", "class", ">probability")
    for prediction in result.predictions:
        path = escape(str(prediction.path))
        if prediction.error:
            rows.add_row(path, f"[red]{escape(prediction.error)}[/]", "")
        for rank, likely in enumerate(prediction.top):
            rows.add_row("" if rank else path, literal(likely.name), percent(likely.probability, 1))
    output.show(rows)
    if result.images > 1 and not output.as_json:
        err.print(escape(_summary(result)), soft_wrap=True)
