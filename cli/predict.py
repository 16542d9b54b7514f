"""`resnet-ops predict`: what images show, by an exported file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.config import PredictConfig

from .clock import importing, process_started_at
from .console import Output, err, percent, report_error, table
from .options import Debug, Json, argument, option

if TYPE_CHECKING:
    from resnet_ops.export.predict import PredictResult

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
    status = err.status("Looking", spinner="dots")
    with status if err.is_terminal else err:
        with importing():
            from resnet_ops.export import predict as library

        def seen(done: int, total: int) -> None:
            status.update(f"Looking: {done:,} of {total:,} images")

        result = library.predict(config, seen, process_started_at())
    _show(output, result)
    if result.failed:
        first = next(one for one in result.predictions if one.error)
        refusal = UserError(
            f"{result.failed:,} of {result.images:,} could not be looked at, such as {first.path}: {first.error}.",
            exit_code=WORK_FAILED,
        )
        report_error(refusal, WORK_FAILED, as_json=False, debug=debug)
    output.end(result)
    if result.failed:
        raise typer.Exit(WORK_FAILED)


def _show(output: Output, result: "PredictResult") -> None:
    made = table("image", "class", ">probability")
    for one in result.predictions:
        if one.error:
            made.add_row(escape(str(one.path)), f"[red]{escape(one.error)}[/]", "")
        for rank, likely in enumerate(one.top):
            made.add_row("" if rank else escape(str(one.path)), escape(likely.name), percent(likely.probability))
    output.show(made)
