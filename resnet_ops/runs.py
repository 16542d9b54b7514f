"""The run directory, the contract between commands.

    runs/NAME/run.json       configuration, versions, data, status: one `RunRecord`
             metrics.jsonl   one `Epoch` a line
             events.jsonl    what befell it: workers lost, machines gone and come; one `Event` a line
             progress.json   where the epoch in hand stands; rewritten a few times a second
             checkpoints/    epoch-NNNN.safetensors: everything needed to go on; within an epoch
                             epoch-NNNN-step-NNNNNN.safetensors
             best/           model.safetensors and model.json: the weights that validated best
             export/         model.onnx and the record of its proof

Every file is written under a temporary name, flushed to the disk and renamed, so that a crash
leaves the old file or the new one. Nothing here knows torch.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

import resnet_ops
from resnet_ops.config import TrainConfig, check_run_name
from resnet_ops.errors import WORK_FAILED, PausedError, UserError, did_you_mean

Status = Literal["running", "finished", "failed", "interrupted"]
Line = TypeVar("Line", bound=BaseModel)
DISTRIBUTIONS = ("torch", "torchvision", "ray", "onnx", "onnxruntime-gpu", "numpy")


class Epoch(BaseModel):
    """One line of metrics.jsonl. Losses are means over images; errors are top-1, from 0 to 1."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    step: int
    train_loss: float
    train_error: float
    val_loss: float
    val_error: float
    lr: float
    images_per_second: float
    seconds: float
    world_size: int = 1

    @property
    def val_accuracy(self) -> float:
        """Top-1 accuracy on the validation images, from 0 to 1."""
        return 1 - self.val_error


class Event(BaseModel):
    """One line of events.jsonl."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    what: str


class DataRecord(BaseModel):
    """What the run was trained on; `fingerprint` is a SHA-256 of the files' bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    class_names: tuple[str, ...]
    train_images: int
    val_images: int
    channels: int
    height: int
    width: int


class Best(BaseModel):
    """The epoch whose weights lie in best/."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    val_accuracy: float
    checkpoint: Path


class RunRecord(BaseModel):
    """run.json."""

    format: Literal[1] = 1
    name: str
    status: Status
    reason: str = ""
    created: datetime
    updated: datetime
    config: TrainConfig
    data: DataRecord
    parameters: int
    world_size: int
    device: str
    host: str
    versions: dict[str, str]
    resumed: int = 0
    best: Best | None = None


class Run:
    """A run's directory: where everything lies, and how it is read and written."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.record_file = self.path / "run.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.progress_file = self.path / "progress.json"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.export = self.path / "export"
        self.lock_file = self.path / ".lock"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def read(self) -> RunRecord:
        """Read run.json; a run whose process died while running reads as interrupted.

        Raises:
            UserError: There is no run here, or run.json is damaged.
        """
        record = self.read_as_written()
        if record.status == "running" and not self.locked():
            reason = "its process ended without a word (killed, or the machine went down)"
            return record.model_copy(update={"status": "interrupted", "reason": reason})
        return record

    def read_as_written(self) -> RunRecord:
        """Read run.json, whoever holds the run.

        Raises:
            UserError: There is no run here, or run.json is damaged.
        """
        try:
            return RunRecord.model_validate_json(self.record_file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"There is no run in {self.path}.", "List the runs with: resnet-ops runs") from None
        except (ValidationError, OSError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(f"{self.record_file} cannot be read ({detail}).", "The run is damaged.") from None

    def write(self, record: RunRecord) -> RunRecord:
        """Write run.json, and return the record as written."""
        record = record.model_copy(update={"updated": datetime.now(UTC)})
        write_atomically(self.record_file, record.model_dump_json(indent=2).encode() + b"\n")
        return record

    def epochs(self) -> list[Epoch]:
        """Read metrics.jsonl, in order; a torn last line (the process was killed) is left out."""
        return _read_lines(self.metrics_file, Epoch)

    def write_epochs(self, epochs: list[Epoch]) -> None:
        """Replace metrics.jsonl."""
        write_atomically(self.metrics_file, "".join(e.model_dump_json() + "\n" for e in epochs).encode())

    def append_epoch(self, epoch: Epoch) -> None:
        """Append one line to metrics.jsonl, on the disk when this returns."""
        _append_line(self.metrics_file, epoch)

    def events(self) -> list[Event]:
        """Read events.jsonl, in order."""
        return _read_lines(self.events_file, Event)

    def tell(self, what: str) -> None:
        """Append to events.jsonl; not worth stopping for."""
        with contextlib.suppress(OSError, UserError):
            _append_line(self.events_file, Event(at=datetime.now(UTC), what=what))

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Rewrite progress.json: never half there, but not worth stopping for."""
        temporary = self.progress_file.with_name(".progress.json.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(progress))
            temporary.replace(self.progress_file)

    def read_progress(self, seen: int = 0) -> tuple[dict[str, Any] | None, int]:
        """Read progress.json if it is newer than `seen`, and return its age mark to pass next time."""
        try:
            changed = self.progress_file.stat().st_mtime_ns
            return (json.loads(self.progress_file.read_bytes()), changed) if changed > seen else (None, seen)
        except (OSError, ValueError):
            return None, seen

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it however the process ends.

        Raises:
            UserError: Another process holds it.
        """
        with self.lock_file.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"Run {self.name} is being trained by another process.",
                    "Wait for it to end, or take another --name.",
                ) from None
            yield

    def locked(self) -> bool:
        """Whether a living process holds the run."""
        try:
            with self.lock_file.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def create(runs_dir: Path, name: str | None, stem: str, overwrite: bool) -> Run:
    """Make the directory of a new run: `runs_dir/name`, or the first free of stem, stem-2...

    Raises:
        UserError: The name is taken and `overwrite` is false, the folder that has it is not a
            run, another process is training it, or `runs_dir` cannot be written.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            run = Run(runs_dir / (name or (stem if number == 1 else f"{stem}-{number}")))
            if run.path.exists() and name is not None:
                _clear(run, overwrite)
            try:
                run.path.mkdir()
            except FileExistsError:
                continue
            for folder in (run.checkpoints, run.best, run.export):
                folder.mkdir()
            return run
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {runs_dir.absolute()}: {error.strerror}.",
            "Choose another place with --runs-dir.",
        ) from None
    raise UserError(f"{runs_dir} is full of runs called {stem}.", "Give this one a --name.")


def _clear(run: Run, overwrite: bool) -> None:
    if not overwrite:
        raise UserError(
            f"There is a run called {run.name} in {run.path.parent}.",
            f"Go on with it: --resume {run.name}; replace it: --overwrite; or take another --name.",
        )
    if not run.record_file.exists():
        raise UserError(f"{run.path} is not a run, so --overwrite leaves it alone.", "Take another --name.")
    with run.lock():
        shutil.rmtree(run.path)


def find(runs_dir: Path, name: str) -> Run:
    """The run called `name`.

    Raises:
        UserError: There is none; names the nearest.
    """
    known = [run.name for run in in_folder(runs_dir)]
    if name not in known:
        some = f"{did_you_mean(name, known)} There are: {', '.join(known[:8])}." if known else ""
        raise UserError(
            f"There is no run called {name!r} in {runs_dir.absolute()}.", some or "Train one: resnet-ops train"
        )
    return Run(runs_dir / check_run_name(name))


def in_folder(runs_dir: Path) -> list[Run]:
    """All runs in `runs_dir`, the newest first."""
    if not runs_dir.is_dir():
        return []
    runs = [Run(path) for path in runs_dir.iterdir() if (path / "run.json").is_file()]
    return sorted(runs, key=lambda run: run.record_file.stat().st_mtime, reverse=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the distributions that shape a result."""
    # Of ourselves not what is installed, but what runs: a cluster is sent the submitter's.
    found = {"python": platform.python_version(), "resnet-ops": resnet_ops.__version__}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def host() -> str:
    """Name of this machine."""
    return socket.gethostname()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: after a crash it is the old file or the new one, whole.

    Raises:
        PausedError: The disk is full (or a quota is); the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _explain_full_disk(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def _explain_full_disk(path: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise PausedError(
            f"The disk is full: {path.name} ({size / 1e6:.1f} MB) does not fit into {path.parent} "
            f"({free / 1e6:.1f} MB free).",
            "Free some space.",
            exit_code=WORK_FAILED,
        ) from error


def _append_line(path: Path, line: BaseModel) -> None:
    with _explain_full_disk(path), path.open("a") as file:
        file.write(line.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """All whole lines; a torn one was being written when its process was killed."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    read: list[Line] = []
    for line in lines:
        with contextlib.suppress(ValidationError):
            read.append(kind.model_validate_json(line))
    return read


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
