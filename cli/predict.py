"""`resnet-ops predict`: classifies images with an exported file."""

import time
from typing import Any

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.config import PredictConfig

from .clock import importing, process_started_at
from .console import Output, err, percent, report_error, table
from .options import Debug, Json, Options, options_of

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
    with importing():
        from resnet_ops.export import predict as library
        from resnet_ops.export.classifier import Classifier
        from resnet_ops.export.runtime import choose_provider

    paths = library.find(config.images)
    classifier = Classifier.open(config.file, choose_provider(config.provider))
    made = table("image", "class", ">probability")
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    status = err.status("Looking", spinner="dots")
    with status if err.is_terminal else err:
        for one in library.predict(classifier, paths, config.top):
            rows.append(_told(one))
            _add(made, one)
            if len(rows) % 50 == 0:
                status.update(f"Looking: {len(rows):,} of {len(paths):,} images")
    seconds = time.monotonic() - began
    output.show(made)
    failed = [row for row in rows if "error" in row]
    if failed:
        refusal = UserError(
            f"{len(failed):,} of {len(rows):,} could not be looked at, such as {failed[0]['path']}: "
            f"{failed[0]['error']}.",
            exit_code=WORK_FAILED,
        )
        report_error(refusal, WORK_FAILED, as_json=False, debug=debug)
    output.end(
        {
            "predictions": rows,
            "images": len(rows),
            "failed": len(failed),
            "file": config.file.absolute(),
            "model": classifier.inside.model,
            "provider": classifier.session.provider,
            "images_per_second": len(rows) / seconds,
            "total_s": time.time() - process_started_at(),
        }
    )
    if failed:
        raise typer.Exit(WORK_FAILED)


def _told(one: Any) -> dict[str, Any]:
    if one.error:
        return {"path": one.path, "error": one.error}
    return {"path": one.path, "top": [{"class": name, "probability": share} for name, share in one.top]}


def _add(made: Any, one: Any) -> None:
    if one.error:
        made.add_row(escape(str(one.path)), f"[red]{escape(one.error)}[/]", "")
    for rank, (name, share) in enumerate(one.top):
        made.add_row("" if rank else escape(str(one.path)), escape(name), percent(share))
