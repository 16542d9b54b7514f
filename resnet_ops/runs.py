"""The run directory, the contract between commands.

    runs/NAME/run.json       configuration, versions, data, status: one `RunRecord`
             metrics.jsonl   one `Epoch` a line
             events.jsonl    what befell it: workers lost, machines gone and come; one `Event` a line
             progress.json   where the epoch in hand stands; rewritten a few times a second
             tensorboard/    the epochs once more, for TensorBoard (tracking/)
             tracking.json   what MLflow or W&B know of it, only with --track
             checkpoints/    epoch-NNNN.safetensors: everything needed to go on; within an epoch
                             epoch-NNNN-step-NNNNNN.safetensors
             best/           model.safetensors and model.json: the weights that validated best
             export/         model.onnx and the record of its proof
             tune.json       only where the run is the best of a search, whose trials are beside it (tuning/results.py)

It lies on a disk or in a bucket (files.py), and one process holds it (locks.py). Whatever is
written is whole after a crash: the old file or the new one. Nothing here knows torch.
"""

import contextlib
import json
import platform
import secrets
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import resnet_ops
from resnet_ops import files, locks
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.options import check_run_name
from resnet_ops.results import Moment, Result

Status = Literal["running", "finished", "failed", "interrupted"]
EventKind = Literal["note", "loss"]
Line = TypeVar("Line", bound=BaseModel)
REMOTE_INTERVAL_S = 2.0  # a request costs money, and training up to 0.1 s
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
    """One line of events.jsonl. A loss, of workers or of what drives them, counts towards `max_failures`."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    what: str
    kind: EventKind = "note"  # also of lines that were written before there were kinds: they are not counted again


class BadImage(BaseModel):
    """An image that could not be decoded, and why."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class DataRecord(BaseModel):
    """What the run was trained on.

    `fingerprint` is a SHA-256 of what `fingerprint_of` says: the files' content, or, of much data, names and sizes.
    The network sees `height` x `width`; where the images were larger or of differing sizes, training crops that from
    squares with a side of `stored`. `bad_images` were left out, and are not counted elsewhere; the first are named.
    Where images are streamed, bad ones are met while training: they are counted in the numbers of images, and others
    take their places; `mean` and `std` of the pixels are those of a sample.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    fingerprint_of: Literal["content", "names and sizes"] = "content"
    class_names: tuple[str, ...]
    train_images: int
    val_images: int
    channels: int
    height: int
    width: int
    stored: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bad_images: int = 0
    first_bad_images: tuple[BadImage, ...] = ()


class Best(BaseModel):
    """The epoch whose weights lie in best/."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    val_accuracy: float
    checkpoint: files.Place


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


class RunSummary(Result):
    """A run in a list of runs."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    reason: str = Field(description="Why it failed or was interrupted, if it was.")
    model: str = Field(description="Network, such as resnet20.")
    data: str = Field(description="Name of the data set.")
    epochs_done: int = Field(description="Epochs trained so far.")
    epochs: int = Field(description="Epochs to train.")
    best_val_accuracy: float | None = Field(description="Top-1 accuracy of the best epoch, 0 to 1.")
    best_epoch: int | None = Field(description="The epoch that validated best.")
    created: Moment
    updated: Moment


class RunList(Result):
    """The runs in a folder."""

    runs_dir: files.Place = Field(description="The folder.")
    runs: tuple[RunSummary, ...] = Field(description="Its runs, the newest first.")


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
        self.search_file = self.path / "tune.json"
        self.lock_file = self.path / ".lock"
        self.progress_at = float("-inf")

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
            reason = "its process ended unexpectedly (killed, or the machine went down)"
            return record.model_copy(update={"status": "interrupted", "reason": reason})
        return record

    def read_as_written(self) -> RunRecord:
        """Read run.json, whoever holds the run.

        Raises:
            UserError: There is no run here, or run.json is damaged.
        """
        try:
            return RunRecord.model_validate_json(files.read(self.record_file))
        except FileNotFoundError:
            raise UserError(f"There is no run in {self.path}.", "List the runs with: resnet-ops runs") from None
        except (ValidationError, OSError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(f"{self.record_file} cannot be read ({detail}).", "The run is damaged.") from None

    def write(self, record: RunRecord) -> RunRecord:
        """Write run.json, and return the record as written."""
        record = record.model_copy(update={"updated": datetime.now(UTC)})
        files.write_atomically(self.record_file, record.model_dump_json(indent=2).encode() + b"\n")
        return record

    def epochs(self) -> list[Epoch]:
        """Read metrics.jsonl, in order; a torn last line (the process was killed) is left out."""
        return _read_lines(self.metrics_file, Epoch)

    def write_epochs(self, epochs: list[Epoch]) -> None:
        """Replace metrics.jsonl."""
        files.write_atomically(self.metrics_file, "".join(e.model_dump_json() + "\n" for e in epochs).encode())

    def append_epoch(self, epoch: Epoch) -> None:
        """Append one line to metrics.jsonl, on the disk when this returns."""
        files.append(self.metrics_file, epoch.model_dump_json())

    def events(self) -> list[Event]:
        """Read events.jsonl, in order."""
        return _read_lines(self.events_file, Event)

    def log_event(self, what: str, kind: EventKind = "note") -> None:
        """Append to events.jsonl; not worth stopping for."""
        event = Event(at=datetime.now(UTC), what=what, kind=kind)
        with contextlib.suppress(OSError, UserError):
            files.append(self.events_file, event.model_dump_json(), patience_s=0)

    @property
    def interval_s(self) -> float:
        """Seconds between two looks at it that are worth it."""
        return REMOTE_INTERVAL_S if files.is_remote(self.path) else 0.2

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Rewrite progress.json: never half there, but not worth stopping for, nor worth many requests."""
        content = json.dumps(progress).encode()
        if not files.is_remote(self.path):
            temporary = self.progress_file.with_name(".progress.json.tmp")
            with contextlib.suppress(OSError):
                temporary.write_bytes(content)
                temporary.replace(self.progress_file)
        elif time.monotonic() - self.progress_at >= REMOTE_INTERVAL_S:
            with contextlib.suppress(UserError):
                files.write_atomically(self.progress_file, content, patience_s=0)
            self.progress_at = time.monotonic()

    def read_progress(self, seen: int = 0) -> tuple[dict[str, Any] | None, int]:
        """Read progress.json if it is newer than `seen`, and return its age mark to pass next time."""
        try:
            changed = files.modified_ns(self.progress_file) or 0
            return (json.loads(files.read(self.progress_file)), changed) if changed > seen else (None, seen)
        except (OSError, ValueError):
            return None, seen

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for this process, for the length of a `with` block.

        Raises:
            UserError: Another process holds it.
        """
        return locks.hold(self.lock_file, self.name)

    def lost(self) -> bool:
        """Whether another process took the run from this one."""
        return locks.is_lost(self.lock_file)

    def locked(self) -> bool:
        """Whether a living process holds the run."""
        return locks.is_held(self.lock_file)


def create(runs_dir: Path, name: str | None, stem: str, overwrite: bool) -> Run:
    """Make the directory of a new run: `runs_dir/name`, or the first free of stem, stem-2...

    Raises:
        UserError: The name is taken and `overwrite` is false, the folder that has it is not a
            run, another process is training it, or `runs_dir` cannot be written.
    """
    files.check_reachable(runs_dir)
    try:
        files.make_folder(runs_dir, exist_ok=True)
        for number in range(1, 10_000):
            run = Run(runs_dir / (name or (stem if number == 1 else f"{stem}-{number}")))
            if name is not None and files.exists(run.path):
                _clear(run, overwrite)
            try:
                files.make_folder(run.path)
            except FileExistsError:
                continue
            for folder in (run.checkpoints, run.best, run.export):
                files.make_folder(folder)
            return run
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {runs_dir.absolute()}: {error.strerror}.",
            "Choose another folder with --runs-dir.",
        ) from None
    raise UserError(f"{runs_dir} has too many runs called {stem}.", "Choose a --name.")


def _clear(run: Run, overwrite: bool) -> None:
    if _never_began(run):
        files.remove_tree(run.path)
        return
    if not overwrite:
        raise UserError(
            f"Run {run.name} exists already in {run.path.parent}.",
            f"Resume it with --resume {run.name}, replace it with --overwrite, or use another --name.",
        )
    if not files.is_file(run.record_file):
        raise UserError(f"{run.path} is not a run, so --overwrite does not replace it.", "Use another --name.")
    with run.lock():
        if files.is_remote(run.path):
            files.remove_tree(run.path)
            return
        # Not while the lock is open in it: NFS keeps an open file, under another name.
        aside = run.path.with_name(f".{run.name}-{secrets.token_hex(4)}")
        run.path.rename(aside)
    files.remove_tree(aside)


def _never_began(run: Run) -> bool:
    """Whether its process was killed before it wrote what the run is: then there are empty folders only."""
    if files.is_remote(run.path) or files.is_file(run.record_file):
        return False
    metadata = set(run.path.iterdir())
    folders = {run.checkpoints, run.best, run.export}
    return (
        metadata <= {*folders, run.lock_file}
        and not run.locked()
        and not any(any(f.iterdir()) for f in metadata & folders)
    )


def find(runs_dir: Path, name: str) -> Run:
    """The run called `name`.

    Raises:
        UserError: There is none; names the nearest.
    """
    known = [run.name for run in in_folder(runs_dir)]
    if name not in known:
        some = f"{did_you_mean(name, known)} Available: {', '.join(known[:8])}." if known else ""
        raise UserError(
            f"There is no run called {name!r} in {runs_dir.absolute()}.", some or "Train one: resnet-ops train"
        )
    return Run(runs_dir / check_run_name(name))


def in_folder(runs_dir: Path) -> list[Run]:
    """All runs in `runs_dir`, the newest first.

    Raises:
        UserError: It is in a bucket that is not there or cannot be reached.
    """
    files.check_reachable(runs_dir)
    found = [Run(path) for path in files.listed(runs_dir)]
    dated = [(changed, run) for run in found if (changed := files.modified_ns(run.record_file)) is not None]
    return [run for _, run in sorted(dated, key=lambda pair: pair[0], reverse=True)]


def summaries(runs_dir: Path, warn: Callable[[str], None] = lambda _: None) -> RunList:
    """Summarise all runs in `runs_dir`, the newest first; `notice` is told of those that are damaged.

    Raises:
        UserError: It is in a bucket that is not there or cannot be reached.
    """
    found = []
    for run in in_folder(runs_dir):
        try:
            found.append(_summary(run, run.read()))
        except UserError as error:
            warn(str(error))
    return RunList(runs_dir=runs_dir.absolute(), runs=tuple(found))


def _summary(run: Run, record: RunRecord) -> RunSummary:
    epochs = run.epochs()
    best = max(epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss), default=None)
    return RunSummary(
        name=run.name,
        run_dir=run.path,
        status=record.status,
        reason=record.reason,
        model=record.config.model,
        data=record.data.name,
        epochs_done=len(epochs),
        epochs=record.config.epochs,
        best_val_accuracy=None if best is None else best.val_accuracy,
        best_epoch=None if best is None else best.epoch,
        created=record.created,
        updated=record.updated,
    )


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


def _read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """All whole lines; a torn one was being written when its process was killed."""
    try:
        lines = files.read(path).decode().splitlines()
    except FileNotFoundError:
        return []
    read: list[Line] = []
    for line in lines:
        with contextlib.suppress(ValidationError):
            read.append(kind.model_validate_json(line))
    return read
