"""The run directory, the contract between commands.

    runs/NAME/run.json       configuration, versions, data, status: one `RunRecord`
             metrics.jsonl   one `Epoch` a line
             events.jsonl    workers lost, machines lost and added; one `Event` a line
             progress.json   progress within the current epoch; rewritten a few times a second
             pictures/       augmented training images, and the confusion matrix of the best epoch
             tensorboard/    the metrics and pictures for TensorBoard (tracking/)
             tracking.json   what has been sent to MLflow or W&B, only with --track
             checkpoints/    epoch-NNNN.safetensors: everything needed to resume; within an epoch
                             epoch-NNNN-step-NNNNNN.safetensors
             best/           model.safetensors and model.json: the weights that validated best, by --select; with
                             --fit-all the last ones
             weights.safetensors  the pretrained weights that it begins with, if any
             export/         model.onnx and the record of its verification
             tune.json       only where the run is the best of a search, whose trials lie in trials/ (tuning/results.py)

It lies on a disk or in a bucket (files.py), and is locked by one process at a time (locks.py), which checks before each
write that it still is. Each file is whole after a crash: the old content or the new. What the files contain is in
run_records.py; nothing here knows torch.
"""

import contextlib
import functools
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

import resnet_ops
from resnet_ops import files, locks
from resnet_ops.config import IMAGENET_WEIGHTS, RunListConfig
from resnet_ops.config_base import as_typed, check_text
from resnet_ops.errors import PausedError, RunLostError, UserError, did_you_mean
from resnet_ops.machine import release
from resnet_ops.run_records import Epoch, Event, EventKind, HeldOutRecord, RunList, RunRecord, RunSummary

RunPicture = Literal["augmented", "confusion"]
EPOCH_OF_PICTURE = "Epoch"  # the field of the PNG that has it
Line = TypeVar("Line", bound=BaseModel)
FOLDERS = ("checkpoints", "best", "export")  # on a disk, from the start
FILE_SUFFIXES = {".onnx", ".safetensors", ".pth", ".pt", ".ckpt", ".bin"}  # of files that commands take beside runs
LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file; longer ones its own reader refuses
MAX_NUMBER = 10_000  # of runs that are called alike
REMOTE_INTERVAL_S = 2.0  # a request costs money, and training up to 0.1 s


class Run:
    """A run directory: the paths of its files, how they are read, written and locked."""

    def __init__(self, path: Path) -> None:
        absolute = path.absolute()
        # A name is needed, which .. is not; a link has one, and goes on having it.
        self.path = absolute.resolve() if ".." in absolute.parts else absolute
        self.record_file = self.path / "run.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.progress_file = self.path / "progress.json"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.export = self.path / "export"
        self.pictures = self.path / "pictures"
        self.weights_file = self.path / "weights.safetensors"
        self.search_file = self.path / "tune.json"
        self.lock_file = self.path / ".lock"
        self._progress_written_s = float("-inf")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    def resume_command(self, command: str = "train") -> str:
        """Return the command that resumes it, with "tune" as a search."""
        where = [] if self.path.parent == Path("runs").absolute() else ["--runs-dir", as_typed(self.path.parent)]
        return shlex.join(["resnet-ops", *command.split(), "--resume", self.name, *where])

    def read(self) -> RunRecord:
        """Read run.json; a run whose process died while running reads as interrupted.

        A run that is trained is as new as its metrics and its progress, for which run.json is not written.

        Raises:
            UserError: There is no run here, or run.json is damaged.
        """
        record = self.read_as_written()
        if record.status != "running":
            return record
        written = [files.modified_ns(file) or 0 for file in (self.metrics_file, self.progress_file)]
        record.updated = max(record.updated, datetime.fromtimestamp(max(written) / 1e9, UTC))
        if not self.is_locked():
            reason = "its process ended unexpectedly (killed, or the machine went down)"
            return record.model_copy(update={"status": "interrupted", "reason": reason})
        return record

    def read_as_written(self) -> RunRecord:
        """Read run.json, with the status in it, even if the process that wrote it has died.

        Raises:
            UserError: There is no run here, or run.json is damaged.
        """
        try:
            return RunRecord.model_validate_json(files.read(self.record_file))
        except FileNotFoundError:
            raise _no_run(self.path) from None
        except (ValidationError, OSError) as error:
            raise unreadable(self.record_file, error) from None

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

    def val_correct(self) -> int | None:
        """Read which validation images the best weights classify correctly: bit n is that of image n.

        Returns:
            None where it is not recorded.
        """
        digits = self._of_best("val_correct")
        return int(digits, 16) if digits else None

    def val_classes(self) -> tuple[tuple[int, int], ...]:
        """Read how many validation images of each class the best weights classify correctly, and how many there are.

        Returns:
            () where it is not recorded.
        """
        return tuple((correct, images) for correct, images in self._of_best("val_classes") or ())

    def best_metrics(self) -> Epoch | None:
        """Read the metrics of the best weights; None where there are none."""
        metrics = self._of_best("metrics")
        return Epoch.model_validate(metrics) if metrics else None

    def held_out(self) -> HeldOutRecord | None:
        """Read which validation images were held out; None where the data has some, or it is not recorded."""
        held_out = self._of_best("held_out")
        return HeldOutRecord.model_validate(held_out) if held_out else None

    def best_checksum(self) -> str | None:
        """Read the checksum of the best weights by their own word, in a moment; None where there are none."""
        return checkpoint_header(self.best / "model.safetensors").get("sha256")

    def _of_best(self, field: str) -> Any:
        try:
            return json.loads(files.read(self.best / "model.json")).get(field)
        except FileNotFoundError:
            return None

    def picture_file(self, picture: RunPicture) -> Path:
        """Return the PNG of a picture, which need not be there."""
        return self.pictures / f"{picture}.png"

    def events(self) -> list[Event]:
        """Read events.jsonl, in order."""
        return _read_lines(self.events_file, Event)

    def log_event(self, what: str, kind: EventKind = "note") -> None:
        """Append to events.jsonl, unless that fails: an event is not worth stopping for."""
        event = Event(at=datetime.now(UTC), what=what, kind=kind)
        with contextlib.suppress(OSError, UserError):
            files.append(self.events_file, event.model_dump_json(), patience_s=0)

    @property
    def interval_s(self) -> float:
        """Seconds between two reads for changes."""
        return REMOTE_INTERVAL_S if files.is_remote(self.path) else 0.2

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Replace progress.json, unless that fails; in a bucket not more often than `REMOTE_INTERVAL_S`.

        Raises:
            RunLostError: The run is another process's by now. Of all that is written, this is written most often.
        """
        content = json.dumps(progress).encode()
        if not files.is_remote(self.path):
            files.check_fences(self.progress_file)
            temporary = self.progress_file.with_name(".progress.json.tmp")
            with contextlib.suppress(OSError):
                temporary.write_bytes(content)
                temporary.replace(self.progress_file)
        elif time.monotonic() - self._progress_written_s >= REMOTE_INTERVAL_S:
            with contextlib.suppress(PausedError):
                files.write_atomically(self.progress_file, content, patience_s=0)
            self._progress_written_s = time.monotonic()

    def read_progress(self, since_ns: int = 0) -> tuple[dict[str, Any] | None, int]:
        """Read progress.json if it is newer than `since_ns`; also return when it was written, to pass next time."""
        try:
            changed = files.modified_ns(self.progress_file) or 0
            return (json.loads(files.read(self.progress_file)), changed) if changed > since_ns else (None, since_ns)
        except (OSError, ValueError):
            return None, since_ns

    @contextlib.contextmanager
    def lock(self, wait_s: float = 0.0, warn: locks.Warn = locks.ignore) -> Iterator[None]:
        """Hold the run for this process, for the length of a `with` block.

        Args:
            wait_s: Seconds to wait for another process that holds it.
            warn: Called once, with who that is, where this one waits.

        Raises:
            UserError: There is no run here, or another process holds it.
            RunLostError: Another process took it over meanwhile.
        """
        try:
            held = contextlib.ExitStack()
            held.enter_context(locks.hold(self.lock_file, self.name, locks.Patience(wait_s, warn)))
        except FileNotFoundError:
            raise _no_run(self.path) from None
        with held:
            yield

    @property
    def fence(self) -> str | None:
        """Return what other processes need to write to the run for this one, which holds it; see `join`."""
        return locks.nonce(self.lock_file)

    def join(self, fence: str | None) -> None:
        """Write to the run, from now on, for the process that holds it, and only while that does."""
        if fence is not None:
            locks.join(self.lock_file, self.name, fence)

    def is_lost(self) -> bool:
        """Return whether another process took the run over from this one."""
        try:
            files.check_fences(self.path)
        except RunLostError:
            return True
        return False

    def is_locked(self) -> bool:
        """Return whether a living process holds the run."""
        return locks.holder(self.lock_file) is not None


def _no_run(path: Path) -> UserError:
    return UserError(f"There is no run in {path}.", "List the runs with: resnet-ops runs")


def check_new(runs_dir: Path, name: str | None, overwrite: bool, *, waits: bool = False) -> None:
    """Check, before any work, that `name` means nothing else, and that `claim` will find it free and `runs_dir` ready.

    Args:
        runs_dir: Folder of the run.
        name: The run; None where `claim` chooses its name.
        overwrite: Replace a run of the same name.
        waits: Whether `claim` will wait for one that is being trained.

    Raises:
        UserError: As for `claim`, or the name is that of something else.
    """
    if name is not None:
        _check_is_no_other(name)
    files.check_reachable(runs_dir)
    check_text(runs_dir.absolute())
    try:
        files.check_writable(runs_dir)
    except UserError as error:
        raise error.copy_with(remedy="Choose another folder with --runs-dir.") from None
    if name is not None and files.exists(runs_dir / name):
        run = Run(runs_dir / name)
        _check_replaceable(run, overwrite)
        if not waits and (holder := locks.holder(run.lock_file)):
            raise locks.refusal(holder, run.name)


def _check_is_no_other(name: str) -> None:
    """Check that commands that take runs and files, or published weights, will not take a new run for one of those."""
    if name == IMAGENET_WEIGHTS:
        raise UserError(f"--name {name}: these are torchvision's weights in --weights and export.", "Use another name.")
    path = PurePath(name)
    if path.suffix.lower() in FILE_SUFFIXES:
        raise UserError(f"--name {name}: that is the name of a file, not of a run.", f"Use --name {path.stem}.")


@contextlib.contextmanager
def claim(
    runs_dir: Path,
    name: str | None,
    stem: str,
    overwrite: bool,
    wait_s: float = 0.0,
    warn: locks.Warn = locks.ignore,
) -> Iterator[Run]:
    """Create the directory of a new run, and hold it for the length of a `with` block.

    It is `runs_dir/name`, or the first that is free of stem, stem-2, ... Of many processes that claim one at once, one
    gets it, which no other ever sees without its lock. `wait_s` and `warn` are as for `Run.lock`.

    Raises:
        UserError: The name is taken and `overwrite` is false, the folder that has it is not a
            run, another process is training it, or `runs_dir` cannot be written.
        RunLostError: Another process took it over meanwhile.
    """
    files.check_reachable(runs_dir)
    with contextlib.ExitStack() as stack:
        try:
            files.make_folder(runs_dir, exist_ok=True)
            if not files.is_remote(runs_dir):
                locks.sweep(runs_dir, Run(runs_dir).lock_file.name)
            run = _hold_first_free(stack, runs_dir, name, stem, overwrite, locks.Patience(wait_s, warn))
        except OSError as error:
            raise UserError(
                f"The run cannot be written to {runs_dir.absolute()}: {error.strerror}.",
                "Choose another folder with --runs-dir.",
            ) from None
        yield run


def create(runs_dir: Path, name: str | None, stem: str, overwrite: bool) -> Run:
    """Create the directory of a new run that is not held: another lock protects it, such as that of its search."""
    with claim(runs_dir, name, stem, overwrite) as run:
        return run


def _hold_first_free(
    stack: contextlib.ExitStack,
    runs_dir: Path,
    name: str | None,
    stem: str,
    overwrite: bool,
    patience: locks.Patience,
) -> Run:
    """Hold, in `stack`, the first run that can be created; one of this very `name` is deleted if it may be."""
    number = 1
    while number < MAX_NUMBER:
        run = Run(runs_dir / (name or (stem if number == 1 else f"{stem}-{number}")))
        try:
            stack.enter_context(locks.hold_new(run.lock_file, run.name, FOLDERS))
        except FileExistsError:
            if name is None:
                number += 1
                continue
        else:
            return run
        is_being_begun = not files.is_file(run.record_file) and run.is_locked()
        if not is_being_begun:  # else its lock decides
            _check_replaceable(run, overwrite)
        if files.is_remote(run.path):
            stack.enter_context(run.lock(patience.wait_s, patience.warn))
            _check_replaceable(run, overwrite)
            _empty(run)
            return run
        with contextlib.suppress(FileNotFoundError):  # another process has just replaced it
            locks.remove(run.lock_file, run.name, functools.partial(_check_replaceable, run, overwrite), patience)
    raise UserError(f"{runs_dir} has too many runs called {stem}.", "Choose a --name.")


def delete(run: Run) -> None:
    """Delete a run with all its files.

    Raises:
        UserError: It is not a run, or another process holds it.
    """
    run.read_as_written()
    if not files.is_remote(run.path):
        locks.remove(run.lock_file, run.name, lambda: None)
        return
    with run.lock():
        _empty(run)


def _empty(run: Run) -> None:
    """Delete all of a run in a bucket but its lock, run.json last: until then it is a run that may be replaced."""
    for path in sorted(set(files.listed(run.path)) - {run.lock_file}, key=lambda path: path == run.record_file):
        files.remove_tree(path)


def _check_replaceable(run: Run, overwrite: bool) -> None:
    """Check that a run that exists may be replaced, or never began."""
    if _never_began(run):
        return
    if not overwrite:
        raise UserError(
            f"Run {run.name} exists already in {run.path.parent}.",
            f"Resume it with --resume {run.name}, replace it with --overwrite, or use another --name.",
        )
    if not files.is_file(run.record_file) and not locks.is_lock(run.lock_file):
        raise UserError(f"{run.path} is not a run, so --overwrite does not replace it.", "Use another --name.")


def _never_began(run: Run) -> bool:
    """Return whether its process was killed before it wrote run.json, and so before it trained anything."""
    if files.is_file(run.record_file) or not (files.is_remote(run.path) or run.path.is_dir()):
        return False
    paths = {path for path in files.listed(run.path) if path.suffix != files.TEMPORARY}
    folders = {run.checkpoints, run.best, run.export}
    is_known = paths <= {*folders, run.lock_file, run.weights_file}
    return is_known and not any(files.listed(folder) for folder in paths & folders)


def find(runs_dir: Path, name: str, others: Sequence[str] = ()) -> Run:
    """Return the run called `name`.

    Args:
        runs_dir: Folder of the run.
        name: The run.
        others: What else might be meant.

    Raises:
        UserError: There is none; the error names the nearest.
    """
    known = {run.name: run for run in in_folder(runs_dir)}
    if name not in known:
        available = f"Available: {', '.join(list(known)[:8])}." if known else ""
        train = "." if known else ", or train one: resnet-ops train"
        raise UserError(
            f"There is no run called {name!r} in {runs_dir.absolute()}.",
            f"{did_you_mean(name, [*others, *known])} {available} Name another folder of runs with --runs-dir{train}",
        )
    return known[name]


def find_or_open(runs_dir: Path, name: str, others: Sequence[str] = ()) -> Run:
    """Return the run whose folder `name` is, or else the one that is called so.

    Raises:
        UserError: As `find`.
    """
    run = Run(files.to_path(name).expanduser())
    return run if files.is_file(run.record_file) else find(runs_dir, name, others)


def in_folder(runs_dir: Path) -> list[Run]:
    """Return all runs in `runs_dir`, the newest first.

    Raises:
        UserError: It is in a bucket that is not there or cannot be reached.
    """
    files.check_reachable(runs_dir)
    all_runs = [Run(path) for path in files.listed(runs_dir)]
    dated = [(changed, run) for run in all_runs if (changed := files.modified_ns(run.record_file)) is not None]
    return [run for _, run in sorted(dated, key=lambda pair: pair[0], reverse=True)]


def summarize(runs_dir: Path, warn: Callable[[str], None] = lambda _: None) -> RunList:
    """Summarize all runs in `runs_dir`, the newest first; pass `warn` a message about each damaged one.

    Raises:
        UserError: It is in a bucket that is not there or cannot be reached.
    """
    summaries = []
    for run in in_folder(runs_dir):
        try:
            summaries.append(summary_of(run, run.read()))
        except UserError as error:
            warn(str(error))
    return RunList(runs_dir=runs_dir.absolute(), runs=tuple(summaries))


def list_runs(config: RunListConfig, warn: Callable[[str], None] = lambda _: None) -> RunList:
    """Summarize the runs that `config` asks for, in its order; pass `warn` a message about each damaged one.

    Raises:
        UserError: As `summarize`.
    """

    def is_asked_for(run: RunSummary) -> bool:
        matches = config.match is None or any(config.match in text for text in (run.name, run.model, run.data))
        return matches and config.status in (None, run.status)

    order: dict[str, Callable[[RunSummary], Any]] = {
        "updated": lambda run: -run.updated.timestamp(),
        "created": lambda run: -run.created.timestamp(),
        "name": lambda run: run.name,
        "accuracy": lambda run: -1.0 if run.best_val_accuracy is None else -run.best_val_accuracy - 1,
    }
    everything = summarize(config.runs_dir, warn)
    return everything.model_copy(
        update={"runs": tuple(sorted(filter(is_asked_for, everything.runs), key=order[config.sort]))}
    )


def distinct_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return what to call each of some runs: its name, where several have that with the folders that differ."""
    names = dict[Path, str]()
    for folder in folders:
        same = [other for other in folders if other.name == folder.name and other != folder]
        counts = range(1, len(folder.parts) + 1)
        count = next((n for n in counts if all(other.parts[-n:] != folder.parts[-n:] for other in same)), 0)
        names[folder] = as_typed(Path(*folder.parts[-count:]))
    return names


def summary_of(run: Run, record: RunRecord) -> RunSummary:
    """Summarize a run whose record has been read."""
    epochs = record.curve(run.epochs())
    best = record.best_of(epochs)
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
        selected_by=None if record.config.fit_all else record.config.select,
        best_metric=None if best is None else best.selected_metric(record.config.select),
        last_val_accuracy=epochs[-1].val_accuracy if epochs else None,
        test_accuracy=(tested := record.best.test_accuracy if record.best else None),
        measured_images=None if tested is None else record.measured_images,
        fit_all=record.config.fit_all,
        created=record.created,
        updated=record.updated,
    )


def unreadable(record_file: Path, error: Exception) -> UserError:
    """Return why the record of a run or a search cannot be read: a newer version may have written it."""
    detail, remedy = str(error).splitlines()[0], "It is damaged."
    with contextlib.suppress(OSError, ValueError, UserError, KeyError, TypeError):
        wrote = json.loads(files.read(record_file))["versions"]["resnet-ops"]
        if release(wrote) > release(resnet_ops.__version__):
            remedy = f"Version {wrote} of resnet-ops wrote it; this is {resnet_ops.__version__}. Install that one."
    return UserError(f"{record_file} cannot be read ({detail}).", remedy)


def checkpoint_header(file: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself in its first bytes; nothing where there is none, or it is no checkpoint."""
    try:
        size = int.from_bytes(files.read_start(file, 8), "little")
        return dict(json.loads(files.read_start(file, 8 + size)[8:])["__metadata__"]) if size <= LARGEST_HEADER else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """Read all whole lines; a torn one was being written when its process was killed."""
    try:
        lines = files.read(path).splitlines()  # of bytes: at newlines only
    except FileNotFoundError:
        return []
    parsed: list[Line] = []
    for line in lines:
        with contextlib.suppress(ValidationError):
            parsed.append(kind.model_validate_json(line))
    return parsed
