"""`resnet-ops export`: the best checkpoint as an ONNX file, and the proof as a table."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.errors import UserError
from resnet_ops.export.config import ExportConfig
from resnet_ops.formatting import percent, size

from .clock import importing, process_started_at
from .console import Output, err, short, table
from .options import Debug, Json, RunsDir, argument, option
from .proofs import notice, refuse, show_proof, summary

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
        raise UserError("No export format given.", f"Use: resnet-ops export {run} --onnx")
    given = locals()
    config = ExportConfig.of(**{name: given[name] for name in ExportConfig.model_fields})
    with err.status("Exporting", spinner="dots") if err.is_terminal else err:
        with importing():
            from resnet_ops.export import job

        result = job.export_onnx(config, notice, process_started_at())
    _show(output, result)


def _show(output: Output, result: Any) -> None:
    proof, inside = result.proof, result.inside
    if result.candidates:
        made = table("int8 quantization", "calibration", ">top-1 agreement", ">mean difference", ">images/s", "")
        for one in result.candidates:
            mark = "[green]selected[/]" if one.chosen else ""
            speed = f"{one.images_per_second:,.0f}"
            made.add_row(one.form, one.method, percent(one.agreement), f"{one.error:.1e}", speed, mark)
        output.show(made, "")
    if result.kept_in_fp32:
        output.show(f"fp16: {result.kept_in_fp32}")
    show_proof(output, proof)
    if proof.validated:
        what = "" if inside.precision == "fp32" else f"{inside.precision}, "
        takes = "pixels of any size" if inside.input == "raw" else "normalised floats"
        told = f"{what}{size(result.size_bytes)}, opset {result.opset}, input: {takes}"
        output.show(f"[bold green]Verified:[/] {escape(short(result.file))} ({told})")
    ending = {
        **summary(proof, inside, result.file),
        "opset": result.opset,
        "checkpoint": result.checkpoint.path,
        "epoch": result.checkpoint.info.epoch,
        "size_bytes": result.size_bytes,
        "proof": result.proof_file,
        "candidates": [vars(one) for one in result.candidates],
        "total_s": result.total_s,
    }
    if not proof.validated:
        refuse(output, proof, "Verification failed", f"The file is kept as {result.file} for inspection.", ending)
    output.end(ending)
