"""`resnet-ops export`: the best checkpoint as an ONNX file, and the proof as a table."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.config import ExportConfig
from resnet_ops.errors import WORK_FAILED, UserError

from .clock import importing, process_started_at
from .console import Output, err, percent, report_error, short, table
from .options import Debug, Json, RunsDir, argument, option

EXAMPLES = """
[bold]resnet-ops export mine --onnx[/]  the best checkpoint of run 'mine'

[bold]resnet-ops export runs/mine/checkpoints/epoch-0007.safetensors --onnx[/]  one checkpoint

[bold]resnet-ops export mine --onnx --provider cuda[/]  proven on the GPU, or refused
"""
default = ExportConfig.default


def _option(name: str) -> Any:
    return option(ExportConfig, name)


def export(
    run: Annotated[str, argument(ExportConfig, "run")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX (so far the only format).")] = False,
    opset: Annotated[int, _option("opset")] = default("opset"),
    provider: Annotated[str, _option("provider")] = default("provider"),
    data: Annotated[str | None, _option("data")] = default("data"),
    tolerance: Annotated[float | None, _option("tolerance")] = default("tolerance"),
    runs_dir: Annotated[Path, RunsDir] = default("runs_dir"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a run's best checkpoint into ONNX, and prove it with ONNX Runtime.

    The file gets its name, runs/NAME/export/model.onnx, only once it agrees with torch on random
    and on real images and over the whole validation set, from raw pixels on.
    """
    output = Output(json)
    if not onnx:
        raise UserError("Export to which format?", f"Say it: resnet-ops export {run} --onnx")
    config = ExportConfig.of(run=run, opset=opset, provider=provider, data=data, tolerance=tolerance, runs_dir=runs_dir)
    with err.status("Exporting", spinner="dots") if err.is_terminal else err:
        with importing():
            from resnet_ops.export import job

        result = job.export_onnx(config, _notice, process_started_at())
    _show(output, result)


def _notice(message: str) -> None:
    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)


def _show(output: Output, result: Any) -> None:
    from resnet_ops.export.runtime import has_gpu

    proof = result.proof
    made = table("check", "found", "limit", "", title=f"ONNX Runtime ({proof.provider}) against torch")
    for check in proof.checks:
        mark = "[green]holds[/]" if check.held else "[bold red]FAILS[/]"
        made.add_row(check.name, escape(check.found), check.limit, mark)
    accuracies = f"accuracy: torch {percent(proof.val_accuracy_torch, 2)}, ONNX {percent(proof.val_accuracy_onnx, 2)}"
    output.show(made, accuracies)
    cuda = proof.provider == "CUDAExecutionProvider"
    if not cuda:
        why = "it was not asked for" if has_gpu() else "this machine has no NVIDIA GPU"
        output.show(f"[yellow]CUDA was not validated:[/] {why}; the proof ran on the CPU.")
    if proof.validated:
        size = f"{result.size_bytes / 1e6:.1f} MB, opset {result.opset}"
        output.show(f"[bold green]Proven:[/] {escape(short(result.file))} ({size})")
    summary = {
        "onnx": result.file,
        "opset": result.opset,
        "provider": proof.provider,
        "validated": proof.validated,
        "cuda_validated": cuda and proof.validated,
        "max_abs_diff": proof.max_abs_diff,
        "max_rel_diff": proof.max_rel_diff,
        "tolerance": proof.tolerance,
        "top1_agreement": proof.top1_agreement,
        "images": proof.images,
        "val_accuracy_torch": proof.val_accuracy_torch,
        "val_accuracy_onnx": proof.val_accuracy_onnx,
        "nodes_by_provider": proof.nodes_by_provider,
        "checkpoint": result.checkpoint.path,
        "epoch": result.checkpoint.info.epoch,
        "size_bytes": result.size_bytes,
        "proof": result.proof_file,
        "total_s": result.total_s,
    }
    if proof.validated:
        output.end(summary)
        return
    failed = ", ".join(f"{check.name} ({check.found})" for check in proof.refuted_by)
    refusal = UserError(
        f"The export was refuted: {failed}.", f"The file is kept as {result.file} to look into.", WORK_FAILED
    )
    report_error(refusal, WORK_FAILED, as_json=False, debug=False)
    output.end(summary)
    raise typer.Exit(WORK_FAILED)
