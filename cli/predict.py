"""`resnet-ops predict`: what images show, by an exported file."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.config import PredictConfig
from resnet_ops.formatting import percent

from .clock import importing, process_started_at
from .console import Output, err, report_error, table
from .options import Debug, Json, argument, option

EXAMPLES = """
[bold]resnet-ops predict model.onnx photo.jpg[/]  what it shows

[bold]resnet-ops predict model.onnx folder/ --top 5[/]  every image below a folder, five classes each

[bold]resnet-ops predict model.onnx folder/ --json | jq '.predictions[] | [.path, .top[0].class]'[/]
"""
default = PredictConfig.default


def _option(name: str) -> Any:
    return option(PredictConfig, name)


def predict(
    file: Annotated[Path, argument(PredictConfig, "file")],
    images: Annotated[list[Path], argument(PredictConfig, "images")],
    top: Annotated[int, _option("top")] = default("top"),
    provider: Annotated[str, _option("provider")] = default("provider"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell what images show, by what an exported ONNX file says of itself and nothing else.

    What cannot be decoded is named with its reason, and the rest goes on; the exit code is then 1.
    """
    output = Output(json)
    config = PredictConfig.of(file=file, images=tuple(images), top=top, provider=provider)
    with importing():
        from resnet_ops.export import predict as library
        from resnet_ops.export.classifier import Classifier
        from resnet_ops.export.runtime import choose_provider

    paths = library.find(config.images)
    classifier = Classifier.open(config.file, choose_provider(config.provider))
    made = table("image", "class", ">probability")
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    status = err.status("Classifying", spinner="dots")
    with status if err.is_terminal else err:
        for one in library.predict(classifier, paths, config.top):
            rows.append(_told(one))
            _add(made, one)
            if len(rows) % 50 == 0:
                status.update(f"Classifying: {len(rows):,} of {len(paths):,} images")
    seconds = time.monotonic() - began
    output.show(made)
    failed = [row for row in rows if "error" in row]
    if failed:
        refusal = UserError(
            f"{len(failed):,} of {len(rows):,} images could not be read, such as {failed[0]['path']}: "
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
        made.add_row("" if rank else escape(str(one.path)), escape(name), percent(share, 1))
