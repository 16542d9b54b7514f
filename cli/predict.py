"""`resnet-ops predict`: classifies images with an exported file, and shows the classes as a table."""

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.config import PredictConfig
from resnet_ops.formatting import percent

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, report_error, table
from .startup import importing, process_started_at

if TYPE_CHECKING:
    from resnet_ops.export.classifier import PredictResult

EXAMPLES = """
resnet-ops predict model.onnx photo.jpg  # the most likely class
resnet-ops predict model.onnx folder/ --top 5  # all images in a folder, the five most likely classes each
resnet-ops predict model.onnx folder/ --json | jq '.predictions[] | [.path, .top[0].class]'
"""


@options_of(PredictConfig)
def predict(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Classify images with an exported ONNX file.

    Images that cannot be decoded are listed with the reason, and the others are classified; the exit code is then 1.
    """
    output = Output(json)
    config = options.make(PredictConfig)
    status = err.status("Classifying", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.export import classifier as library

        def progress(done: int, total: int) -> None:
            status.update(f"Classifying: {done:,} of {total:,} images")

        result = library.predict(config, progress, process_started_at())
    _show(output, result)
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


def _show(output: Output, result: "PredictResult") -> None:
    rows = table("image", "class", ">probability")
    for prediction in result.predictions:
        path = escape(str(prediction.path))
        if prediction.error:
            rows.add_row(path, f"[red]{escape(prediction.error)}[/]", "")
        for rank, likely in enumerate(prediction.top):
            rows.add_row("" if rank else path, escape(likely.name), percent(likely.probability, 1))
    output.show(rows)
