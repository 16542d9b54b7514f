"""What is verified is what was read: a file of unknown origin may be replaced or written to at any moment.

It is read once; all that looks at it later, ONNX Runtime too, opens a copy in a folder that only this user may enter.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from resnet_ops import files
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.metadata import ModelMetadata

PREFIX = "resnet-ops-"  # of the names of temporary folders


@dataclass(frozen=True)
class Snapshot:
    """A private copy of an ONNX file, and of its weights if they are in another.

    Args:
        file: The copy.
        original: The file.
        metadata: Its metadata.
        digests: The SHA-256 of the file and of that with its weights, by name.
    """

    file: Path
    original: Path
    metadata: ModelMetadata
    digests: dict[str, str]

    def check_unchanged(self) -> None:
        """Check that the original still is what was copied.

        Raises:
            UserError: It is not.
        """
        for name, digest in self.digests.items():
            copied, now = self.file.with_name(name), self.original.with_name(name)
            # What replaces it may be of any size, or no file, of which reading never ends.
            same_size = now.is_file() and now.stat().st_size == copied.stat().st_size
            if not same_size or files.sha256(now) != digest:
                raise _changed(now)


@contextmanager
def take(path: Path, provider: str) -> Iterator[Snapshot]:
    """Scan an ONNX file, copy it, run the copy once in a sandbox, and delete it in the end.

    Raises:
        UserError: As `untrusted.check_file`, of which this is the same.
    """
    model, metadata = untrusted.scan(path)
    runtime.restrict_provider(provider, metadata.precision)
    external = (t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    # Names without a folder: others are refused by the scan, as are links.
    weights = sorted({entry.value for t in external for entry in t.external_data if entry.key == "location"})
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        copy, digests = Path(folder) / path.name, dict[str, str]()
        for name in weights:
            digests[name] = _copy(path.with_name(name), copy.with_name(name))
        content = bytes(model.SerializeToString(deterministic=True))  # all that was read: nothing else is accepted
        del model
        with files.explain_disk(copy, len(content)):
            copy.write_bytes(content)
        digests[path.name] = hashlib.sha256(content).hexdigest()
        del content
        untrusted.run_in_sandbox(copy, path)
        yield Snapshot(copy, path, metadata, digests)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Check that the files in a folder are the same after a `with` block as before.

    Raises:
        UserError: They are not.
    """
    before = {path: files.sha256(path) for path in folder.iterdir()}
    yield
    if changed := [path for path, digest in before.items() if not path.is_file() or files.sha256(path) != digest]:
        raise _changed(changed[0])


def _copy(source: Path, target: Path) -> str:
    """Copy a file that was scanned, as large as it is now, and return the SHA-256 of the copy."""
    try:
        # What has replaced it since the scan may be a link, or a pipe that never opens.
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise _changed(source) from None
    with os.fdopen(descriptor, "rb") as original:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _changed(source)
        left, digest = status.st_size, hashlib.sha256()
        with files.explain_disk(target, left), target.open("wb") as copied:
            while left > 0 and (block := original.read(min(left, 2**20))):
                copied.write(block)
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path} changed while it was verified.", "Verify it again once nothing writes to it.", WORK_FAILED
    )
