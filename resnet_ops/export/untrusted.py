"""Checks of ONNX files of unknown origin, before they are used: of their content, and by a run in a sandbox process.

A protobuf can be truncated, lie about the sizes of its tensors, point to files elsewhere on the disk, or make ONNX
Runtime crash; the user must get one line then, not a traceback. The program in the sandbox is `sandbox`.
"""

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message

from resnet_ops import formatting
from resnet_ops.errors import UserError, did_you_mean_path
from resnet_ops.export import runtime
from resnet_ops.export.exported_files import not_onnx
from resnet_ops.export.metadata import ModelMetadata

MAX_FILE_BYTES = 2**31 - 1  # what protobuf can read
SANDBOX_TIMEOUT_S = 60.0
EXTERNAL_DATA_KEYS = {"location", "offset", "length"}
STANDARD_DOMAINS = ("", "ai.onnx")
MAX_PARTS = 1_000_000  # a guard, of a graph and its metadata: ResNet-1202 in int8 has a quarter


def check_file(path: Path, provider: str = "auto") -> ModelMetadata:
    """Scan an ONNX file, run it once on the CPU in a sandbox process (0.6 s), and return its metadata.

    Args:
        path: The file.
        provider: The execution provider that was asked for: 'cuda', 'tensorrt', 'cpu' or 'auto'.

    Raises:
        UserError: It is missing, damaged, too large, not of `resnet-ops export`, or has what no export of ours has:
            custom operators, control flow, weights outside of its folder. Or its precision is not for this provider.
    """
    return read_checked(path, provider)[1]


def read_checked(path: Path, provider: str = "auto") -> tuple[onnx.ModelProto, ModelMetadata]:
    """Do what `check_file` does, and return the content as well.

    Raises:
        UserError: As `check_file`.
    """
    model, metadata = scan(path)
    runtime.restrict_provider(provider, metadata.precision)
    run_in_sandbox(path, path)
    return model, metadata


def scan(path: Path) -> tuple[onnx.ModelProto, ModelMetadata]:
    """Read an ONNX file and check its content without running it.

    Raises:
        UserError: As `check_file`.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            what = "is a folder" if path.is_dir() else "does not exist"
            near = did_you_mean_path(path)
            raise UserError(
                f"{path} {what}.", f"{near} Give a run, or an ONNX file, such as runs/NAME/export/model.onnx."
            )
        if size > MAX_FILE_BYTES:
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
        raise not_onnx(path, content) from None
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise _damaged(path, "it contains no graph")
    for fault in _content_faults(path, content, model):
        raise fault
    for fault in _graph_faults(path, model):
        raise fault
    return model, ModelMetadata.parse(path.name, {entry.key: entry.value for entry in model.metadata_props})


def fields_in_use(message: Message) -> Iterator[str]:
    """Yield the fields that a message and all its parts have, as `NodeProto.op_type`, with repetitions.

    Raises:
        UnicodeDecodeError: One is not text, but should be.
    """
    for field, value in message.ListFields():
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        if field.type == field.TYPE_STRING:  # protobuf gives some that are not text as bytes
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    text.decode()
            if value == "":
                continue
        if field.message_type is None:
            yield name
            continue
        for part in [value] if isinstance(value, Message) else value:
            yield name
            yield from fields_in_use(part)


def with_weights(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that was scanned, with the weights that it keeps in another file."""
    if all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        return model
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    onnx.external_data_helper.load_external_data_for_model(whole, str(path.absolute().parent))
    return whole


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}.", "Export it again.")


def _content_faults(path: Path, content: bytes, model: onnx.ModelProto) -> Iterator[UserError]:
    """Check that a file has nothing but its model, as protobuf writes it: other programs may read something else of it.

    ONNX Runtime takes content with `ORTM` in it for a file of its own format, whatever else it is. Sizes alone do not
    tell, as some numbers can be written in fewer bytes than protobuf takes, which makes room for what it passes over.
    """
    try:
        if sum(1 for _ in itertools.islice(fields_in_use(model), MAX_PARTS)) == MAX_PARTS:
            yield UserError(f"{path} has a graph of too many parts.", "Use a file made by `resnet-ops export`.")
    except UnicodeDecodeError:
        yield _damaged(path, "it contains names that are not text")
    model.DiscardUnknownFields()
    if content[4:8] == b"ORTM" or model.SerializeToString(deterministic=True) != content:
        yield UserError(
            f"{path} contains more than an ONNX model: fields that ONNX does not have, or some twice or otherwise.",
            "Use a file made by `resnet-ops export`.",
        )


def _graph_faults(path: Path, model: onnx.ModelProto) -> Iterator[UserError]:
    domains = {e.domain for e in model.opset_import} | {n.domain for n in model.graph.node}
    if custom := sorted(domains - set(STANDARD_DOMAINS)):
        yield UserError(
            f"{path} uses operators of {', '.join(custom)[:200]}.", "Only standard ONNX operators are supported."
        )
    if len(model.functions) or any(
        a.HasField("g") or len(a.graphs) for node in model.graph.node for a in node.attribute
    ):
        yield UserError(f"{path} contains loops, branches or functions.", "Use a file made by `resnet-ops export`.")
    if len(model.graph.sparse_initializer) or len(model.training_info):
        yield UserError(f"{path} contains sparse tensors or training info.", "Use a file made by `resnet-ops export`.")
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if any(dim.dim_value < 0 for value in values for dim in value.type.tensor_type.shape.dim):
        yield _damaged(path, "a value has a negative size")  # unknown to ONNX Runtime; ONNX's own inference aborts
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    for tensor in tensors:
        if fault := _tensor_fault(tensor):
            yield _damaged(path, f"tensor {tensor.name[:100]!r} {fault}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield from _external_data_faults(path, tensor)
        elif tensor.external_data:
            yield _damaged(path, f"tensor {tensor.name[:100]!r} has its weights here, and says that they are elsewhere")
    yield from _surplus_faults(path, tensors)


def _tensor_fault(tensor: onnx.TensorProto) -> str:
    """Return how the content of a tensor differs from its shape and type, or ''."""
    if any(side < 0 for side in tensor.dims):
        return "has a negative size"
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError):
        return "has an unknown type"
    items = math.prod(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return ""
    if tensor.HasField("raw_data"):
        return "" if len(tensor.raw_data) == items * dtype.itemsize else "does not match its shape"
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    if sum(map(len, fields)) != items:
        return "does not match its shape"
    if (
        dtype.kind in "iu" and tensor.int32_data
    ):  # where small integers are, of which some programs take the lowest bits
        limits = np.iinfo(dtype)
        if min(tensor.int32_data) < limits.min or max(tensor.int32_data) > limits.max:
            return "has numbers that its type does not have"
    return ""


def _external_data_faults(path: Path, tensor: onnx.TensorProto) -> Iterator[UserError]:
    """Check that weights in another file are in the same folder and no link: ONNX Runtime follows hard links, too."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    quoted, file = ascii(location[:200]), path.parent / location
    if len(entries) < len(tensor.external_data) or not entries.keys() <= EXTERNAL_DATA_KEYS:
        yield UserError(
            f"{path} says twice, or otherwise than ONNX, where weights are.", "Use a file made by `resnet-ops export`."
        )
        return
    places = [value for key, value in entries.items() if key in ("offset", "length")]
    if not all(value.isascii() and value.isdigit() and len(value) < 20 for value in places):
        yield UserError(f"{path} keeps weights at a place that is no number.", "Export it again.")
        return
    try:
        if not location or Path(location).name != location:
            yield UserError(f"{path} keeps weights outside its folder, in {quoted}.", "Such paths are refused.")
        elif not file.exists():
            yield UserError(f"{path} needs {quoted}, which is missing next to it.", "Copy both files.")
        elif file.is_symlink() or not file.is_file() or file.stat().st_nlink > 1:
            yield UserError(f"{path} keeps weights in a symbolic link, {quoted}.", "Replace it by a copy.")
        else:
            # Without a length, tools read all that is left: of a sparse file, more than there is memory.
            stored, offset = file.stat().st_size, int(entries.get("offset", "0"))
            length = int(entries.get("length", str(stored - offset)))
            item_bytes = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            if offset + length > stored or length != math.prod(tensor.dims) * item_bytes:
                yield _damaged(path, f"{quoted} does not match the shape of tensor {tensor.name[:100]!r}")
    except OSError as error:  # such as a name that is too long
        yield UserError(f"{path} needs {quoted}, which cannot be read: {error.strerror}.", "Export it again.")


def _surplus_faults(path: Path, tensors: Sequence[onnx.TensorProto]) -> Iterator[UserError]:
    """Check that files of weights hold nothing else, and so are no larger than the tensors in them."""
    taken = Counter[str]()
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            (location,) = (entry.value for entry in tensor.external_data if entry.key == "location")
            item_bytes = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            taken[location] += math.prod(tensor.dims) * item_bytes
    for location, size in taken.items():
        if path.with_name(location).stat().st_size > size:
            yield UserError(
                f"{path} has more than its weights in {location[:200]!a}.",
                "Use a file made by `resnet-ops export`.",
            )


def run_in_sandbox(file: Path, path: Path) -> None:
    """Load and run a file once in another process, which may crash or hang.

    Args:
        file: The file.
        path: The one that it is a copy of, or itself, for messages.

    Raises:
        UserError: It did, or the file cannot be run.
    """
    command = [sys.executable, "-P", "-m", "resnet_ops.export.sandbox", str(file.absolute())]
    try:
        # Not in the current folder, which may be a download, and which an empty part of PYTHONPATH stands for.
        ended = subprocess.run(command, cwd="/", capture_output=True, timeout=SANDBOX_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{path} did not finish one image within {SANDBOX_TIMEOUT_S:.0f} s.", "The file is refused."
        ) from None
    if ended.returncode == 0:
        return
    lines = ended.stderr.decode(errors="replace").replace(str(file.absolute()), str(path)).strip().splitlines()
    if ended.returncode < 0:
        raise _damaged(path, f"ONNX Runtime crashes on it (signal {-ended.returncode})")
    raise _damaged(path, f"ONNX Runtime cannot run it ({lines[-1][:300].rstrip('.') if lines else 'no reason given'})")
