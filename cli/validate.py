"""`resnet-ops validate`: tries to refute an ONNX file, and shows the proof as a table."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.export.config import ValidateConfig

from .clock import importing, process_started_at
from .console import Output, err, short
from .options import Debug, Json, RunsDir, option
from .proofs import notice, refuse, show_proof, summary

EXAMPLES = """
[bold]resnet-ops validate runs/mine/export/model.onnx[/]  against the checkpoint and the images of its run

[bold]resnet-ops validate model.onnx --data ~/images --provider cuda[/]  somewhere else, on other images, on a GPU
"""
default = ValidateConfig.default


def _option(name: str) -> Any:
    return option(ValidateConfig, name)


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help=ValidateConfig.model_fields["file"].description)],
    provider: Annotated[str, _option("provider")] = default("provider"),
    data: Annotated[str | None, _option("data")] = default("data"),
    images: Annotated[int | None, _option("images")] = default("images"),
    checkpoint: Annotated[str | None, _option("checkpoint")] = default("checkpoint"),
    tolerance: Annotated[float | None, _option("tolerance")] = default("tolerance"),
    max_accuracy_drop: Annotated[float, _option("max_accuracy_drop")] = default("max_accuracy_drop"),
    runs_dir: Annotated[Path, RunsDir] = default("runs_dir"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Try to refute an exported file on this machine: does it still answer as its checkpoint does?

    It exits with 0 if nothing refuted it, with 1 if something did. Of unknown files nothing is believed: they are
    looked through, and run in a process of their own first.
    """
    output = Output(json)
    given = locals()
    config = ValidateConfig.of(**{name: given[name] for name in ValidateConfig.model_fields})
    with err.status("Validating", spinner="dots") if err.is_terminal else err:
        with importing():
            from resnet_ops.export import validate as library

        result = library.validate_onnx(config, notice, process_started_at())
    proof = result.proof
    show_proof(output, proof, against_torch=result.checkpoint is not None)
    ending = {
        **summary(proof, result.inside, file.absolute()),
        "checkpoint": result.checkpoint.path if result.checkpoint else None,
        "total_s": result.total_s,
    }
    if not proof.validated:
        refuse(output, proof, f"{file} failed verification", "", ending)
    output.show(f"[bold green]Passed:[/] {escape(short(file.absolute()))}")
    output.end(ending)
