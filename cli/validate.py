"""`resnet-ops validate`: verifies an exported file, and shows the checks as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from resnet_ops import files
from resnet_ops.config_base import quoted
from resnet_ops.export.config import ValidateConfig
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.runs import Run

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, short, warn
from .proof_table import refuse, show_proof
from .startup import importing, process_started_at

if TYPE_CHECKING:
    from resnet_ops.export.proof_report import ValidationResult

EXAMPLES = """
resnet-ops validate runs/mine/export/model.onnx  # against the checkpoint and the images of its run
resnet-ops validate model.onnx --data ~/images --provider cuda  # elsewhere, on other images, on a GPU
resnet-ops validate model.onnx --data ~/images --runtime openvino  # in OpenVINO instead of ONNX Runtime
resnet-ops validate old.onnx --data ~/images --black-box  # of another version: its outputs only
"""


@options_of(ValidateConfig)
def validate(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Verify an exported file on this machine: are its outputs still those of its checkpoint?

    The exit code is 0 if all checks pass, 1 if one fails. Untrusted files are checked first, and run in a separate
    process.
    """
    output = Output(json)
    config = with_exported_file(options.make(ValidateConfig))
    status = err.status("Validating", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.export import validate as library

        result = library.validate_onnx(
            config, warn, process_started_at(), on_check=lambda check: status.update(f"Validating: {check}")
        )
    show_proof(output, result)
    if not result.validated:
        refuse(output, result, f"{config.file} failed verification", _remedy(config.file, result))
    passed = "Passed, black box only:" if result.black_box_only else "Passed:"
    output.show(f"[bold green]{passed}[/] {escape(short(result.onnx))}")
    output.end(result)


def _remedy(file: Path, result: "ValidationResult") -> str:
    if any(check.name == "structure" for check in result.failed_checks):
        return "If another version or program made it, add --black-box to check its outputs only."
    run = Run(file.expanduser().absolute().parent.parent)
    command = f": resnet-ops export {quoted(short(run.path))} --onnx" if files.is_file(run.record_file) else ""
    return f"Export it again{command}."
