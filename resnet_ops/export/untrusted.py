"""ONNX files of unknown origin: looked through before anything runs them, and tried in a process of their own.

A protobuf can be cut off, lie about the sizes of its tensors, point to files elsewhere on the disk, or make ONNX
Runtime crash; whoever sends one must get one line back, not a traceback.
"""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from resnet_ops import formatting
from resnet_ops.errors import UserError
from resnet_ops.export.metadata import ModelMetadata

LARGEST_BYTES = 2**31 - 1  # what protobuf can read
TRIAL_S = 60.0
STANDARD = ("", "ai.onnx")


def open_file(path: Path) -> ModelMetadata:
    """Look through the ONNX file at `path`, and try it on the CPU in a process of its own (0.6 s).

    Raises:
        UserError: It is not there, damaged, too large, not of `resnet-ops export`, or does what no export of ours does:
            operators of others, control flow, weights outside of its folder.
    """
    _, metadata = scan(path)
    _try(path)
    return metadata


def scan(path: Path) -> tuple[onnx.ModelProto, ModelMetadata]:
    """Read and check without running anything.

    Raises:
        UserError: As `open_file`.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}.", "Give an ONNX file, such as runs/NAME/export/model.onnx.")
        if size > LARGEST_BYTES:
            raise UserError(
                f"{path} has {formatting.size(size)}, more than an ONNX file can have.", "Give an ONNX file."
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError, RecursionError):
        raise _damaged(path, "it is not ONNX, or truncated") from None
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise _damaged(path, "it contains no graph")
    for fault in _faults(path, model):
        raise fault
    try:
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    except ValueError:
        raise _damaged(path, "its metadata is not text") from None
    return model, ModelMetadata.read(path.name, metadata)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}.", "Export it again.")


def _faults(path: Path, model: onnx.ModelProto) -> Iterator[UserError]:
    others = {e.domain for e in model.opset_import} | {n.domain for n in model.graph.node}
    if foreign := sorted(others - set(STANDARD)):
        yield UserError(
            f"{path} uses operators of {', '.join(foreign)[:200]}.", "Only standard ONNX operators are supported."
        )
    if len(model.functions) or any(
        a.HasField("g") or len(a.graphs) for node in model.graph.node for a in node.attribute
    ):
        yield UserError(f"{path} contains loops, branches or functions.", "Use a file made by `resnet-ops export`.")
    if len(model.graph.sparse_initializer) or len(model.training_info):
        yield UserError(f"{path} contains sparse tensors or training info.", "Use a file made by `resnet-ops export`.")
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield from _outside(path, tensor)
        elif why := _lies(tensor):
            yield _damaged(path, f"tensor {tensor.name[:100]!r} {why}")


def _lies(tensor: onnx.TensorProto) -> str:
    """Whether a tensor holds something else than its shape says."""
    if any(side < 0 for side in tensor.dims):
        return "has a negative size"
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError, TypeError):
        return "has an unknown type"
    numbers = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        return "" if len(tensor.raw_data) == numbers * item else "does not match its shape"
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return "" if sum(map(len, fields)) == numbers else "does not match its shape"


def _outside(path: Path, tensor: onnx.TensorProto) -> Iterator[UserError]:
    """Weights in another file must lie in the same folder, as a file of its own: ONNX Runtime follows hard links."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    file = path.parent / location
    if not location or Path(location).name != location:
        yield UserError(f"{path} keeps weights outside its folder, in {location[:200]!r}.", "Such paths are refused.")
    elif not file.exists():
        yield UserError(f"{path} needs {location}, which is missing next to it.", "Copy both files.")
    elif file.is_symlink() or not file.is_file() or file.stat().st_nlink > 1:
        yield UserError(f"{path} keeps weights in a symbolic link, {location}.", "Replace it by a copy.")


def _try(path: Path) -> None:
    """Load it and run it once where a crash or a hang hurts nobody.

    Raises:
        UserError: It does not work.
    """
    command = [sys.executable, "-m", "resnet_ops.export.sandbox", str(path.absolute())]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=TRIAL_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise UserError(f"{path} did not finish one image within {TRIAL_S:.0f} s.", "The file is refused.") from None
    if ended.returncode == 0:
        return
    lines = ended.stderr.decode(errors="replace").strip().splitlines()
    if ended.returncode < 0:
        raise _damaged(path, f"ONNX Runtime crashes on it (signal {-ended.returncode})")
    raise _damaged(path, f"ONNX Runtime cannot run it ({lines[-1][:300].rstrip('.') if lines else 'no reason given'})")
