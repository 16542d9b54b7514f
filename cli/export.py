"""`resnet-ops export`: exports the best checkpoint of a run to ONNX, and shows the checks as a table."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from resnet_ops.config_base import quoted
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.exported_files import USUAL_NAME
from resnet_ops.formatting import percent, size
from resnet_ops.runs import Run

from .config_options import Debug, Json, Options, options_of, runs_dir_option
from .console import Output, err, short, table, warn
from .proof_table import refuse, show_proof
from .startup import check_network, importing, process_started_at

if TYPE_CHECKING:
    from resnet_ops.export.job import ExportResult

EXAMPLES = """
resnet-ops export mine  # the best checkpoint of run 'mine'
resnet-ops export mine --onnx --precision int8 --input raw  # quantized for CPUs, takes images of any size
resnet-ops export mine --onnx --provider cuda  # verified on the GPU
resnet-ops export weights.pth --classes imagenet.txt --data ~/imagenet --onnx
"""


@options_of(ExportConfig)
def export(
    options: Options,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="Export to ONNX, the only format so far.", rich_help_panel="Model", show_default=False
        ),
    ] = True,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Export the best checkpoint of a run to ONNX and verify it with ONNX Runtime.

    The file gets its final name, runs/NAME/export/model.onnx, only after its outputs agree with PyTorch on random and
    real images and on the whole validation set, preprocessing included. The file holds all metadata needed to use it.
    """
    output = Output(json)
    config = options.make(ExportConfig)
    check_network(config.run, config.model, config.runs_dir)
    status = err.status("Exporting", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.export import job

        result = job.export_onnx(
            config, warn, process_started_at(), on_step=lambda step: status.update(f"Exporting: {step}")
        )
    _show(output, config, result)


def _show(output: Output, config: ExportConfig, result: "ExportResult") -> None:
    if result.candidates:
        candidates = table(
            "types", "calibration", ">top-1 agreement", ">mean difference", ">images/s", "", title="int8 quantization"
        )
        for candidate in result.candidates:
            mark = "[green]selected[/]" if candidate.chosen else ""
            speed = f"{candidate.images_per_second:,.0f}"
            candidates.add_row(
                candidate.form, candidate.method, percent(candidate.agreement), f"{candidate.error:.1e}", speed, mark
            )
        output.show(candidates, "")
    if result.kept_in_fp32:
        output.show(f"fp16: {result.kept_in_fp32}")
    if calibration := result.metadata.calibration:
        temperature = f"temperature {calibration.temperature:.3g}, fitted on {calibration.images:,} validation images"
        output.show(f"calibrated: {temperature}")
    show_proof(output, result)
    if not result.validated:
        refuse(output, result, "Verification failed", f"The file is kept as {result.onnx} for inspection.")
    precision = "" if result.precision == "fp32" else f"{result.precision}, "
    inputs = "pixels of any size" if result.input == "raw" else "normalized floats"
    properties = f"{precision}{size(result.size_bytes)}, opset {result.opset}, input: {inputs}"
    network = escape(_as_argument(config, result))
    output.show(f"[bold green]Verified:[/] {escape(short(result.onnx))} ({properties})")
    output.warn_of(result.majority_baseline, "the network")
    output.show(f"  next  resnet-ops predict {network} FOLDER, or resnet-ops serve {network}")
    output.end(result)


def _as_argument(config: ExportConfig, result: "ExportResult") -> str:
    """Return the file as one gives it to the other commands: by the name of its run, if that leads to it."""
    run = Run(config.runs_dir.absolute() / config.run)
    if result.onnx.absolute() != run.export / USUAL_NAME:
        return quoted(short(result.onnx))
    return f"{config.run}{runs_dir_option(config.runs_dir.absolute())}"
