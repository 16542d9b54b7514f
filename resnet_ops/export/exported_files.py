"""Find the exported file that a user means: a path, or the run that it is of; and name a file that is none."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from resnet_ops import files, runs
from resnet_ops.config_base import quoted
from resnet_ops.errors import UserError
from resnet_ops.export.config import ExportedFileConfig
from resnet_ops.runs import Run

USUAL_NAME = "model.onnx"
C = TypeVar("C", bound=ExportedFileConfig)


def with_exported_file(config: C) -> C:
    """Return a configuration whose `file` is one, where it was the name or the folder of a run.

    Raises:
        UserError: There is no such run, or it has no exported file, or several of which none has the usual name.
    """
    file = config.file.expanduser()
    run = Run(file)
    if not files.is_file(run.record_file):
        is_path = len(file.parts) > 1 or file.is_file()
        if is_path or files.is_remote(config.runs_dir):  # ONNX Runtime reads disks only
            return config
        if file.suffix and not files.is_file(Run(config.runs_dir / file).record_file):  # flowers-v1.2 may be a run
            return config
        run = runs.find(config.runs_dir, file.name)
    exported = sorted(path for path in files.listed(run.export) if path.suffix == ".onnx")
    usual = [path for path in exported if path.name == USUAL_NAME]
    if not exported:
        raise UserError(f"Run {run.name} has no exported file.", f"Export it: resnet-ops export {run.name} --onnx")
    if len(exported) > 1 and not usual:
        names = ", ".join(path.name for path in exported)
        raise UserError(f"Run {run.name} has several exported files: {names}.", f"Give one of them: {exported[0]}")
    return config.model_copy(update={"file": (usual or exported)[0]})


def check_is_of_best(file: Path, checkpoint_sha256: str, warn: Callable[[str], None]) -> None:
    """Warn where a file in the folder of exports of a run is of other weights than those that are its best now."""
    for place in (file.absolute(), file.resolve()):  # a link in that folder, and one to there
        run = Run(place.parent.parent)
        best = run.best_checksum() if place.parent == run.export else None
        if best not in (None, checkpoint_sha256):
            export = f"resnet-ops export {quoted(run.path)} --onnx"
            warn(f"{file.name} was exported from weights other than the best ones that its run has now: {export}")
            return


def not_onnx(path: Path, content: bytes) -> UserError:
    """Return what a file is that is no ONNX file."""
    from resnet_ops.data.decode import DecodeError, read_header
    from resnet_ops.weights.file_kinds import is_weights, other_kind  # imports torch

    if is_weights(content):
        export = f"resnet-ops export {quoted(path)} --onnx"
        return UserError(f"{path} holds weights, it is no ONNX file.", f"Export it: {export}")
    if (other := other_kind(content)) is not None:
        return UserError(f"{path} is {other}, not an ONNX file.", "Give a file made by `resnet-ops export`.")
    try:
        header = read_header(content)
    except DecodeError:
        return UserError(f"{path} is damaged: it is not ONNX, or truncated.", "Export it again.")
    return UserError(f"{path} is an image ({header.format}), not an ONNX file.", "Give the ONNX file first.")
