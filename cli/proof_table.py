"""The table of an exported file's checks, and the error if one fails: the same for `export` and `validate`."""

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.formatting import percent

from .console import Output, report_error, table

if TYPE_CHECKING:
    from resnet_ops.export.proof_report import ValidationResult


def show_proof(output: Output, proof: "ValidationResult") -> None:
    """Show every check and the execution provider."""
    from resnet_ops.export.other_runtimes import OTHER_RUNTIMES
    from resnet_ops.export.runtime import CPU, has_gpu

    against_torch = proof.checkpoint is not None
    against = " compared with torch in float64" if against_torch else ", without a checkpoint"
    where = proof.provider if proof.provider in OTHER_RUNTIMES else f"ONNX Runtime ({proof.provider})"
    checks = table("check", "result", "limit", "", title=where + against)
    for check in proof.checks:
        mark = "[green]PASS[/]" if check.passed else "[bold red]FAIL[/]"
        checks.add_row(check.name, escape(check.result), check.limit, mark)
    output.show(checks)
    if proof.has_seen_images:
        torch = f"torch {percent(proof.seen_accuracy_torch)}, " if against_torch else ""
        seen = f"{torch}ONNX {percent(proof.seen_accuracy_onnx)} on images seen in training, to compare the two only"
        output.show(f"fitted on all images, so without a validation accuracy: {seen}")
    elif proof.images:
        torch = f"torch {percent(proof.val_accuracy_torch)}, " if against_torch else ""
        margin = f" ± {percent(proof.accuracy_margin)}" if proof.sample else ""
        errors = f"{proof.calibration_error_onnx:.4f}"
        if against_torch:
            errors = f"{proof.calibration_error_torch:.4f}, {errors}"
        if proof.fitted_temperature:
            errors += " on the images that its temperature was fitted on"
        output.show(f"accuracy: {torch}ONNX {percent(proof.val_accuracy_onnx)}{margin}; calibration error {errors}")
    if proof.sample:
        output.show(
            f"[yellow]Verified on a stratified sample:[/] {proof.images:,} of {proof.images_total:,} images, "
            f"{proof.sample}."
        )
    if proof.black_box_only:
        output.show(f"[yellow]Black box only:[/] {proof.black_box_only}; its weights were not compared.")
    if proof.provider == CPU:
        if proof.precision == "int8":
            reason = "int8 is for CPUs and TensorRT, for CUDA use --precision fp16"
        else:
            reason = "not requested (--provider cuda)" if has_gpu() else "this machine has no NVIDIA GPU"
        output.show(f"[yellow]Not verified on CUDA:[/] {reason}; the checks ran on the CPU.")
    elif proof.provider in OTHER_RUNTIMES:
        output.show(f"[yellow]Not verified on CUDA:[/] the checks ran in {proof.provider}, on the CPU.")


def refuse(output: Output, proof: "ValidationResult", cause: str, remedy: str = "") -> None:
    """Name the checks that failed, which the table shows, and exit with 1.

    Raises:
        typer.Exit: Always.
    """
    failed = ", ".join(check.name for check in proof.failed_checks)
    report_error(UserError(f"{cause}: {failed}.", remedy, WORK_FAILED), WORK_FAILED, as_json=False, debug=False)
    output.end(proof)
    raise typer.Exit(WORK_FAILED)
