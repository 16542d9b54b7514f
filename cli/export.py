"""`resnet-ops export`: the best checkpoint as an ONNX file, and the proof as a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.errors import UserError
from resnet_ops.export.config import ExportConfig

from .clock import importing, process_started_at
from .console import Output, err, percent, short, table
from .options import Debug, Json, RunsDir, argument, option
from .proofs import notice, refuse, show_proof

if TYPE_CHECKING:
    from resnet_ops.export.job import ExportResult

EXAMPLES = """
[bold]resnet-ops export mine --onnx[/]  the best checkpoint of run 'mine'

[bold]resnet-ops export mine --onnx --precision int8 --input raw[/]  fast on CPUs, and takes pixels of any size

[bold]resnet-ops export mine --onnx --provider cuda[/]  proven on the GPU, or refused

[bold]resnet-ops export weights.pth --model resnet50 --classes imagenet.txt --data ~/imagenet --onnx[/]
"""
default = ExportConfig.default


def _option(name: str, panel: str | None = None) -> Any:
    return option(ExportConfig, name, panel)


PROOF, ELSEWHERE = "Proof", "Weights trained elsewhere"


def export(
    run: Annotated[str, argument(ExportConfig, "run")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX (so far the only format).")] = False,
    precision: Annotated[str, _option("precision")] = default("precision"),
    input: Annotated[str, _option("input")] = default("input"),
    softmax: Annotated[bool, _option("softmax")] = default("softmax"),
    opset: Annotated[int, _option("opset")] = default("opset"),
    out: Annotated[Path | None, _option("out")] = default("out"),
    runs_dir: Annotated[Path, RunsDir] = default("runs_dir"),
    provider: Annotated[str, _option("provider", PROOF)] = default("provider"),
    data: Annotated[str | None, _option("data", PROOF)] = default("data"),
    images: Annotated[int | None, _option("images", PROOF)] = default("images"),
    tolerance: Annotated[float | None, _option("tolerance", PROOF)] = default("tolerance"),
    max_accuracy_drop: Annotated[float, _option("max_accuracy_drop", PROOF)] = default("max_accuracy_drop"),
    model: Annotated[str | None, _option("model", ELSEWHERE)] = default("model"),
    classes: Annotated[Path | None, _option("classes", ELSEWHERE)] = default("classes"),
    image_size: Annotated[int | None, _option("image_size", ELSEWHERE)] = default("image_size"),
    mean: Annotated[str | None, _option("mean", ELSEWHERE)] = default("mean"),
    std: Annotated[str | None, _option("std", ELSEWHERE)] = default("std"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a run's best checkpoint into ONNX, and prove it with ONNX Runtime.

    The file gets its name, runs/NAME/export/model.onnx, only once it agrees with torch on random and on real images and
    over the whole validation set, from raw pixels on. All it takes to use it is inside.
    """
    output = Output(json)
    if not onnx:
        raise UserError("Export to which format?", f"Say it: resnet-ops export {run} --onnx")
    given = locals()
    config = ExportConfig.of(**{name: given[name] for name in ExportConfig.model_fields})
    with err.status("Exporting", spinner="dots") if err.is_terminal else err:
        with importing():
            from resnet_ops.export import job

        result = job.export_onnx(config, notice, process_started_at())
    _show(output, result)


def _show(output: Output, result: "ExportResult") -> None:
    if result.candidates:
        made = table("8 bits", "method", ">agrees with fp32", ">mean difference", ">images/s", "")
        for one in result.candidates:
            mark = "[green]chosen[/]" if one.chosen else ""
            speed = f"{one.images_per_second:,.0f}"
            made.add_row(one.form, one.method, percent(one.agreement, 2), f"{one.error:.1e}", speed, mark)
        output.show(made, "")
    if result.kept_in_fp32:
        output.show(f"half precision: {result.kept_in_fp32}")
    show_proof(output, result)
    if not result.validated:
        refuse(output, result, "The export was refuted", f"The file is kept as {result.onnx} to look into.")
    what = "" if result.precision == "fp32" else f"{result.precision}, "
    takes = "pixels of any size" if result.input == "raw" else "normalised floats"
    size = f"{what}{result.size_bytes / 1e6:.1f} MB, opset {result.opset}, takes {takes}"
    output.show(f"[bold green]Proven:[/] {escape(short(result.onnx))} ({size})")
    output.end(result)
