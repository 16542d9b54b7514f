"""What a file of weights is, by its bytes: loaded safely, or refused by the name of what it is instead.

Pickles are loaded as tensors and plain values only, since anything else can run code.
"""

import argparse
import collections
import datetime
import decimal
import fractions
import io
import json
import pathlib
import pickle
import types
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors

from resnet_ops import files
from resnet_ops.errors import UserError

# Of files that are taken for weights by mistake: the first bytes, what it is, and what to do.
OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself: git lfs pull"),
    (b"<", "a web page (HTML or XML)", "Download the file itself, not the page that links to it."),
    (b"{", "text (JSON)", "Give the file of weights itself: model.safetensors, weights.pth."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"BZh", "a bzip2 archive", "Unpack it first."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", "Give weights of PyTorch."),
    (b"\x93NUMPY", "a NumPy array", "Give a state dict: torch.save or safetensors."),
    (b"TFL3", "a TensorFlow Lite model", "Give weights of PyTorch."),
)
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
SAVE_STATE = "Save its weights alone, on a machine that trusts it: torch.save({}.state_dict(), 'weights.pth')"


def read_content(path: Path) -> bytes:
    """Read a file of weights.

    Raises:
        UserError: It cannot be read, or is empty.
    """
    try:
        content = files.read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not content:
        raise UserError(f"{path} is empty.", "Download or copy it again.")
    return content


def load(path: Path, content: bytes) -> Any:
    """Load what a file holds: the dict of a safetensors file, or whatever a pickle of tensors and plain values is.

    Raises:
        UserError: It is damaged, or another kind of file, which the message names.
    """
    if (other := _other(content)) is not None:
        raise UserError(f"{path} is {other[0]}, not weights.", other[1])
    if content[:2] == b"PK":
        _check_archive(path, content)
    elif not content.startswith(PICKLES):
        return _parse_safetensors(path, content)
    return _load_pickle(path, content)


def is_weights(content: bytes) -> bool:
    """Return whether a file is one of tensors, or a pickle, by its first bytes."""
    size = int.from_bytes(content[:8], "little")
    return content.startswith((b"PK", *PICKLES)) or (0 < size <= len(content) and content[8:10] == b'{"')


def other_kind(content: bytes) -> str | None:
    """Return what a file is that is taken for a network's by mistake; None where that is not known."""
    other = _other(content)
    return None if other is None else other[0]


def _other(content: bytes) -> tuple[str, str] | None:
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next(((what, remedy) for magic, what, remedy in OTHERS if start.startswith(magic)), None)


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file; {} where there is none."""
    try:
        size = int.from_bytes(content[:8], "little")
        metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (ValueError, AttributeError):
        return {}
    return metadata


def _check_archive(path: Path, content: bytes) -> None:
    """Check that a ZIP archive is what torch.save writes."""
    try:
        names = {name.partition("/")[2] for name in zipfile.ZipFile(io.BytesIO(content)).namelist()}
    except zipfile.BadZipFile:
        raise _damaged(path, "its archive is cut off") from None
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UserError(
            f"{path} is a TorchScript program, not weights.", SAVE_STATE.format(f"torch.jit.load('{path}')")
        )
    if "data.pkl" not in names:
        exported = any(name.startswith(("models/", "serialized_exported_program")) for name in names)
        what = "a program of torch.export" if exported else "a ZIP archive that torch.save did not write"
        raise UserError(f"{path} is {what}, not weights.", "Give a state dict: torch.save or safetensors.")


def _parse_safetensors(path: Path, content: bytes) -> Any:
    try:
        return parse_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if _is_onnx(content):
            raise UserError(
                f"{path} is an ONNX file, not weights.",
                "Give the checkpoint that it was exported from; to use it: resnet-ops predict, serve or validate.",
            ) from None
        raise _damaged(path, " ".join(str(error).split())[:200]) from None


def _is_onnx(content: bytes) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return bool(onnx.load_model_from_string(content).graph.node)
    except DecodeError:
        return False


def _load_pickle(path: Path, content: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _refusal(path, content) from None
    except Exception as error:  # torch raises errors of any kind on damaged pickles
        raise _damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from None


def _harmless() -> list[Any]:
    """Return what trainers save beside tensors, and what cannot run code: numbers, names and paths."""
    paths = [kind for kind in vars(pathlib).values() if isinstance(kind, type) and issubclass(kind, pathlib.PurePath)]
    old_names = [(kind, f"pathlib.{kind.__name__}") for kind in paths]  # as other versions of Python write them
    old_names += [(kind, f"pathlib._local.{kind.__name__}") for kind in paths]
    numbers = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    of_numpy = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    functions = [(f, f"numpy.{core}.multiarray.{name}") for name, f in of_numpy.items() for core in ("core", "_core")]
    plain = [list, dict, set, tuple, int, float, str, bool, complex]  # that a defaultdict makes, for one
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    records = [argparse.Namespace, types.SimpleNamespace, collections.defaultdict, collections.deque]
    exact = [decimal.Decimal, fractions.Fraction, uuid.UUID]
    return [*records, *plain, *times, *exact, np.dtype, np.ndarray, *numbers, *functions, *old_names]


def _refusal(path: Path, content: bytes) -> UserError:
    """Return why a pickle is refused, by the names of the classes in it."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
    except Exception:  # of an old format, or damaged
        unsafe = []
    loaded = f"torch.load({str(path)!r}, weights_only=False)"
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        classes = [name for name in unsafe if not name.startswith(("torch.nn.", "torch._"))]
        of = f" ({classes[0]})" if classes else ""
        return UserError(
            f"{path} is a whole model{of}, pickled with the names of its code; loading it could run code, so it is "
            "refused.",
            SAVE_STATE.format(loaded),
        )
    names = f": {', '.join(unsafe[:3])}" if unsafe else ""
    return UserError(
        f"{path} is a pickle of more than tensors{names}; loading it could run code, so it is refused.",
        "Save its tensors alone, on a machine that trusts it: "
        f"torch.save({loaded}['state_dict'], 'weights.pth'), or whatever it calls them.",
    )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged, or contains no weights ({reason}).", "Download or copy it again.")
