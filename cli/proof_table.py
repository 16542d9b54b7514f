"""A proof as people read it and as programs do: the same for `export` and `validate`."""

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.formatting import percent

from .console import Output, err, report_error, table

if TYPE_CHECKING:
    from resnet_ops.export.proof import ValidationResult


def warn(message: str) -> None:
    """Tell what the user should know."""
    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)


def show_proof(output: Output, proof: "ValidationResult") -> None:
    """Show every check, and where it ran."""
    from resnet_ops.export.runtime import CPU, has_gpu

    against_torch = proof.checkpoint is not None
    against = " compared with torch in float64" if against_torch else ", without a checkpoint"
    made = table("check", "result", "limit", "", title=f"ONNX Runtime ({proof.provider}){against}")
    for check in proof.checks:
        mark = "[green]PASS[/]" if check.passed else "[bold red]FAIL[/]"
        made.add_row(check.name, escape(check.result), check.limit, mark)
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


def refuse(output: Output, proof: "ValidationResult", what: str, remedy: str = "") -> None:
    """Say what refuted it, and leave with 1.

    Raises:
        typer.Exit: Always.
    """
    failed = ", ".join(f"{check.name} ({check.result.rstrip('.')})" for check in proof.failed_checks)
    report_error(UserError(f"{what}: {failed}.", remedy, WORK_FAILED), WORK_FAILED, as_json=False, debug=False)
    output.end(proof)
    raise typer.Exit(WORK_FAILED)
