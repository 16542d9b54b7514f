"""The records of verifications in the export folder of a run, each beside the file that it is of, as that is now."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal

from resnet_ops import files
from resnet_ops.config_base import quoted
from resnet_ops.errors import UserError
from resnet_ops.runs import Run

RECORD = ".json"  # after the name of the file
FileState = Literal["verified", "gone", "other", "unrecorded"]


@dataclass(frozen=True)
class ExportRecord:
    """A file in the export folder of a run, and what is recorded of its verification.

    Args:
        file: The file.
        state: Whether it is the file that was verified, is gone, is another one, or has no record.
        proof: The record; empty where there is none.
        is_of_best: Whether it is an export of the weights that are the run's best now, by the record, or, where that is
            of another file, by the file's own word; None if that is unknown.
    """

    file: Path
    state: FileState
    proof: dict[str, Any]
    is_of_best: bool | None = None

    @property
    def validate_command(self) -> str:
        """Return the command that verifies the file as it is now."""
        return f"resnet-ops validate {quoted(self.file)}"

    @property
    def accuracies(self) -> tuple[float, float] | None:
        """Return those of torch and the file on images that training has not seen; None where none were measured."""
        return self._numbers("val_accuracy_torch", "val_accuracy_onnx")

    @property
    def seen_accuracies(self) -> tuple[float, float] | None:
        """Return those on images that the network was trained on; None where none were measured."""
        return self._numbers("seen_accuracy_torch", "seen_accuracy_onnx")

    def _numbers(self, *names: str) -> tuple[float, float] | None:
        torch, onnx = (self.proof.get(name) for name in names)
        if not (isinstance(torch, float) and isinstance(onnx, float)) or isnan(torch + onnx):
            return None
        return torch, onnx


def read_export_records(run: Run) -> list[ExportRecord]:
    """Read the records of a run's exports, and what has become of their files; each file is read whole.

    Raises:
        PausedError: A disk or a bucket is out of reach.
    """
    paths = {path.name: path for path in files.listed(run.export)}
    proofs = {name: proof for name, path in paths.items() if (proof := _read_proof(path)) is not None}
    names = {name.removesuffix(RECORD) for name in proofs} | {name for name in paths if name.endswith(".onnx")}
    best = run.best_checksum()

    def record_of(name: str) -> ExportRecord:
        file, proof = paths.get(name), proofs.get(name + RECORD)
        state = _state(file, proof)
        is_of_record = file is None or state == "verified"
        exported = (proof or {}).get("checkpoint_sha256") if is_of_record else _checkpoint_by_own_word(file)
        return ExportRecord(run.export / name, state, proof or {}, exported == best if best and exported else None)

    return [record_of(name) for name in sorted(names)]


def _checkpoint_by_own_word(file: Path | None) -> str | None:
    """Return the checksum of the checkpoint that a file says it was exported from; None if it is no exported file."""
    if file is None or files.is_remote(file) or file.suffix != ".onnx":
        return None
    from resnet_ops.export import untrusted  # imports onnx

    with contextlib.suppress(UserError):
        return untrusted.scan(file)[1].checkpoint_sha256
    return None


def _read_proof(path: Path) -> dict[str, Any] | None:
    """Return the record in a file; None if it is none, or damaged."""
    if path.suffix != RECORD:
        return None
    try:
        proof = json.loads(files.read(path))
    except ValueError:
        return None
    return proof if isinstance(proof, dict) and "checks" in proof else None


def _state(file: Path | None, proof: dict[str, Any] | None) -> FileState:
    if file is None:
        return "gone"
    if proof is None:
        return "unrecorded"
    return "verified" if hashlib.sha256(files.read(file)).hexdigest() == proof.get("sha256") else "other"
