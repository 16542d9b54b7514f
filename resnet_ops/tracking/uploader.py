"""Uploads runs to MLflow or W&B, and remembers in each run's tracking.json how much of it is uploaded.

The calls of each service's library are in `mlflow` and `wandb`, the threads in `tracker`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from resnet_ops import files
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import SERVICE_NAMES, error_line, full_name


class ServiceRun(Protocol):
    """A run at a service: `MLflowRun` or `WandbRun`.

    Raises:
        Exception: Whatever the service's library raises where its server does not answer or refuses; from every method.
    """

    def open(self, run_id: str | None) -> str:
        """Reopen the run with this id if the service has it, else create one; return its id."""

    @property
    def location(self) -> str:
        """The address or folder where the service shows the run."""

    def log_epochs(self, epochs: Sequence[Epoch], first: int) -> None:
        """Log the epochs from index `first` on; those before are logged already."""

    def replace(self) -> str:
        """Create a run in the place of the open one, of which epochs were trained anew; return its id."""

    def end(self, record: RunRecord) -> None:
        """Set the run's final status."""


class TrackedRun:
    """A run as a service knows it: its id there, and the epochs that are uploaded. Kept in the run's tracking.json."""

    def __init__(self, track: str, run: Run, record: RunRecord) -> None:
        self.track = track
        self.file = run.path / "tracking.json"
        self.service = _service_run(track, run, record)
        self.id: str | None = None
        self.sent: list[list[float | None]] = []
        self.status = ""  # at its end
        self.opened = False
        self._read()

    def upload(self, epochs: list[Epoch]) -> str | None:
        """Upload the epochs that the service does not have.

        Returns:
            Where the service shows the run, if that is new.

        Raises:
            Exception: It does not answer, or refuses.
        """
        keys, location = [_key(epoch) for epoch in epochs], None
        if not self.opened:
            self._set_id(self.service.open(self.id))
            location = self.service.location
        common = min(len(keys), len(self.sent))
        if self.sent[:common] != keys[:common]:
            self._set_id(self.service.replace())
            location = f"retrained epochs differ; logged again: {self.service.location}"
        if len(epochs) > len(self.sent):
            self.service.log_epochs(epochs, len(self.sent))
            self.sent = keys
            self._write()
        return location

    def end(self, record: RunRecord) -> None:
        """Upload the run's final status.

        Raises:
            Exception: The service does not answer, or refuses.
        """
        self.service.end(record)
        self.status = record.status
        self._write()

    def is_complete(self, epochs: list[Epoch], status: str) -> bool:
        """Return whether these epochs and this final status are all uploaded."""
        return self.sent == [_key(epoch) for epoch in epochs] and self.status == status

    def _set_id(self, run_id: str) -> None:
        if run_id != self.id:
            self.id, self.sent = run_id, []
        self.status, self.opened = "", True
        self._write()

    def _read(self) -> None:
        try:
            state = json.loads(files.read(self.file)).get(self.track, {})
        except (FileNotFoundError, ValueError):
            return
        self.id, self.sent, self.status = state.get("id"), state.get("sent", []), state.get("status", "")

    def _write(self) -> None:
        content = {self.track: {"id": self.id, "status": self.status, "sent": self.sent}}
        files.write_atomically(self.file, json.dumps(content).encode() + b"\n", patience_s=0)


def _key(epoch: Epoch) -> list[float | None]:
    """Return what distinguishes an epoch from the same one trained anew; not its speed."""
    return [epoch.epoch, epoch.train_loss, epoch.val_loss, epoch.val_error]


def _service_run(track: str, run: Run, record: RunRecord) -> ServiceRun:
    if track == "mlflow":
        from resnet_ops.tracking.mlflow import MLflowRun

        return MLflowRun(run, record)
    from resnet_ops.tracking.wandb import WandbRun

    return WandbRun(run, record)


class Uploader:
    """Uploads runs that have changed, and logs once when the service fails and once when it answers again.

    Args:
        track: "mlflow" or "wandb".
        log_event: Called with what the user should know.
        resume_command: As for `Tracker`.
    """

    def __init__(self, track: str, log_event: Callable[[str], None], resume_command: Callable[[Run], str]) -> None:
        self.track, self.name = track, SERVICE_NAMES[track]
        self.log_event, self.resume_command = log_event, resume_command
        self.runs: dict[Path, TrackedRun] = {}
        self.failing = False

    def update(self, changed: dict[Path, bool]) -> None:
        """Upload runs that have changed, given for each whether it has ended."""
        answers = True  # a service that fails is not asked for the other runs, but next time
        for path, ended in changed.items():
            answers = answers and self._upload(Run(path), ended)
            if ended:
                self._report_missing(Run(path))
                self.runs.pop(path, None)

    def _upload(self, run: Run, ended: bool) -> bool:
        """Upload a run; return whether the service answered."""
        try:
            epochs, record = run.epochs(), run.read_as_written()
            if run.path not in self.runs:
                self.runs[run.path] = TrackedRun(self.track, run, record)
            tracked = self.runs[run.path]
            if ended and not tracked.opened and tracked.is_complete(epochs, record.status):
                return True
            location = tracked.upload(epochs)
            if ended:
                tracked.end(record)
        except Exception as error:
            if not self.failing:
                self.log_event(
                    f"{self.name}: logging failed: {error_line(error)}. Training continues; logging is retried."
                )
            self.failing = True
            return False
        if location:
            self.log_event(f"{self.name}: {location}")
        if self.failing:
            self.log_event(f"{self.name}: reconnected; everything missed has been logged.")
        self.failing = False
        return True

    def _report_missing(self, run: Run) -> None:
        try:
            epochs = run.epochs()
        except Exception:  # reported by _upload
            return
        tracked = self.runs.get(run.path)
        missing = len(epochs) - (len(tracked.sent) if tracked else 0)
        if missing > 0 or (self.failing and epochs):
            part = f"{missing} of {len(epochs)} epochs" if missing > 0 else "the final status"
            self.log_event(
                f"{self.name}: not logged: {part} of {full_name(run)}. To log it later: {self.resume_command(run)}"
            )
