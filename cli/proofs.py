"""A proof as people read it and as programs do: the same for `export` and `validate`."""

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.formatting import percent

from .console import Output, err, report_error, table


def notice(message: str) -> None:
    """Tell what the user should know."""
    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)


def show_proof(output: Output, proof: Any, against_torch: bool = True) -> None:
    """Show every check, and where it ran."""
    from resnet_ops.export.runtime import CPU, has_gpu

    against = " compared with torch in float64" if against_torch else ", without a checkpoint"
    made = table("check", "result", "limit", "", title=f"ONNX Runtime ({proof.provider}){against}")
    for check in proof.checks:
        mark = "[green]PASS[/]" if check.held else "[bold red]FAIL[/]"
        made.add_row(check.name, escape(check.found), check.limit, mark)
    output.show(made)
    if proof.images:
        torch = f"torch {percent(proof.val_accuracy_torch)}, " if against_torch else ""
        errors = f"{proof.calibration_error_onnx:.4f}"
        if against_torch:
            errors = f"{proof.calibration_error_torch:.4f}, {errors}"
        output.show(f"accuracy: {torch}ONNX {percent(proof.val_accuracy_onnx)}; calibration error {errors}")
    if proof.provider == CPU:
        why = "not requested (--provider cuda)" if has_gpu() else "this machine has no NVIDIA GPU"
        output.show(f"[yellow]Not verified on CUDA:[/] {why}; the checks ran on the CPU.")


def summary(proof: Any, inside: Any, file: Path) -> dict[str, Any]:
    """The fields that `--json` of both commands has."""
    from resnet_ops.export.runtime import CPU

    return {
        "onnx": file,
        "precision": inside.precision,
        "input": inside.input,
        "provider": proof.provider,
        "validated": proof.validated,
        "cuda_validated": proof.provider != CPU and proof.validated,
        "nodes_by_provider": proof.nodes_by_provider,
        "max_abs_diff": proof.max_abs_diff,
        "max_rel_diff": proof.max_rel_diff,
        "tolerance": proof.tolerance,
        "top1_agreement": proof.top1_agreement,
        "images": proof.images,
        "val_accuracy_torch": proof.val_accuracy_torch,
        "val_accuracy_onnx": proof.val_accuracy_onnx,
        "calibration_error_torch": proof.calibration_error_torch,
        "calibration_error_onnx": proof.calibration_error_onnx,
        "checks": [vars(check) for check in proof.checks],
    }


def refuse(output: Output, proof: Any, what: str, remedy: str, result: dict[str, Any]) -> None:
    """Say what refuted it, and leave with 1.

    Raises:
        typer.Exit: Always.
    """
    failed = ", ".join(f"{check.name} ({check.found.rstrip('.')})" for check in proof.refuted_by)
    report_error(UserError(f"{what}: {failed}.", remedy, WORK_FAILED), WORK_FAILED, as_json=False, debug=False)
    output.end(result)
    raise typer.Exit(WORK_FAILED)
