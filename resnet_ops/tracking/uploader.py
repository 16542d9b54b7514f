"""The thread that tells MLflow or W&B what runs do, and how much of a run each has been told.

A process of its own for that spared nothing: ResNet-8, 5 epochs of digits, MLflow's server beside it on 2 cores, medians
of 6: first step after 4.1 s and 5.7 s in all, against 4.3 s and 6.3 s with a process and 3.3 s and 4.3 s untracked.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import NAMES, error_line, full_name

LAST_WORDS_S = 120.0  # how long a command that is done waits for a service at most


class TrackedRun:
    """A run as a service knows it: by which id, and what it was told. Kept in the run's tracking.json."""

    def __init__(self, track: str, run: Run, record: RunRecord) -> None:
        self.track, self.run = track, run
        self.file = run.path / "tracking.json"
        self.service = _service(track, run, record)
        self.id: str | None = None
        self.sent: list[list[float]] = []
        self.status = ""  # at its end
        self.begun = False
        self._read()

    def catch_up(self, epochs: list[Epoch]) -> str | None:
        """Tell the service what it does not know.

        Returns:
            Where it can be looked at, if that is news.

        Raises:
            Exception: It does not answer, or refuses.
        """
        known, news = [_known(epoch) for epoch in epochs], None
        if not self.begun:
            self._begin(self.service.begin(self.id))
            news = self.service.where
        both = min(len(known), len(self.sent))
        if self.sent[:both] != known[:both]:
            self._begin(self.service.replace(self.id))
            news = f"retrained epochs differ; logged again: {self.service.where}"
        if len(epochs) > len(self.sent):
            self.service.send(epochs, len(self.sent))
            self.sent = known
            self._write()
        return news

    def end(self, record: RunRecord) -> None:
        """Tell the service how the run ended.

        Raises:
            Exception: It does not answer, or refuses.
        """
        self.service.end(record)
        self.status = record.status
        self._write()

    def is_settled(self, epochs: list[Epoch], status: str) -> bool:
        """Whether it knows all, and that there will be no more."""
        return self.sent == [_known(epoch) for epoch in epochs] and self.status == status

    def _begin(self, found: str) -> None:
        if found != self.id:
            self.id, self.sent = found, []
        self.status, self.begun = "", True
        self._write()

    def _read(self) -> None:
        try:
            kept = json.loads(files.read(self.file)).get(self.track, {})
        except (FileNotFoundError, ValueError):
            return
        self.id, self.sent, self.status = kept.get("id"), kept.get("sent", []), kept.get("status", "")

    def _write(self) -> None:
        content = {self.track: {"id": self.id, "status": self.status, "sent": self.sent}}
        files.write_atomically(self.file, json.dumps(content).encode() + b"\n", patience_s=0)


def _known(epoch: Epoch) -> list[float]:
    """What tells an epoch from the same one trained otherwise; how fast it was does not."""
    return [epoch.epoch, epoch.train_loss, epoch.val_loss, epoch.val_error]


def _service(track: str, run: Run, record: RunRecord) -> Any:
    if track == "mlflow":
        from resnet_ops.tracking.mlflow import MLflow

        return MLflow(run, record)
    from resnet_ops.tracking.wandb import Wandb

    return Wandb(run, record)


class PendingRuns:
    """Runs that have news for another thread, each but once, however much there is, and whether it has ended."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.due: dict[Path, bool] = {}
        self.closed = False

    def put(self, run: Path, ended: bool) -> None:
        """Leave word that a run has begun, trained an epoch, or ended; returns at once."""
        with self.changed:
            self.due[run] = ended or self.due.get(run, False)
            self.changed.notify()

    def close(self) -> None:
        """Leave word that there will be no more."""
        with self.changed:
            self.closed = True
            self.changed.notify()

    def take(self) -> dict[Path, bool]:
        """Wait for news, and take it; {} where there is none and will be no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.due or self.closed)
            due, self.due = self.due, {}
            return due


class Uploader:
    """Tells MLflow or W&B of some runs, on a thread, and remembers whether it answered.

    Args:
        track: Which of them.
        log_event: Told, from the thread, what the user should know.
        resume: As for `Tracker`.
    """

    def __init__(self, track: str, log_event: Callable[[str], None], resume: Callable[[Run], str]) -> None:
        self.track, self.name, self.log_event, self.resume = track, NAMES[track], log_event, resume
        self.mailbox = PendingRuns()
        self.told: dict[Path, TrackedRun] = {}
        self.down = False
        self.thread = threading.Thread(target=self._work, name="track", daemon=True)  # one that hangs can be left

    def close(self) -> None:
        """Wait until it has told what there is to tell, or does not come to an end."""
        self.mailbox.close()
        self.thread.join(LAST_WORDS_S)
        if self.thread.is_alive():
            self.log_event(f"{self.name} does not come to an end, and is not waited for.")

    def _work(self) -> None:
        while due := self.mailbox.take():
            asked = True  # one that does not answer is asked once a round, however many runs there are
            for path, ended in due.items():
                asked = asked and self._ask(Run(path), ended)
                if ended:
                    self._tell_what_is_missing(Run(path))
                    self.told.pop(path, None)

    def _ask(self, run: Run, ended: bool) -> bool:
        """Whether it answered."""
        try:
            epochs, record = run.epochs(), run.read_as_written()
            if run.path not in self.told:
                self.told[run.path] = TrackedRun(self.track, run, record)
            told = self.told[run.path]
            if ended and not told.begun and told.is_settled(epochs, record.status):
                return True
            news = told.catch_up(epochs)
            if ended:
                told.end(record)
        except Exception as error:
            if not self.down:
                self.log_event(
                    f"{self.name}: logging failed: {error_line(error)}. Training continues; logging is retried."
                )
            self.down = True
            return False
        if news:
            self.log_event(f"{self.name}: {news}")
        if self.down:
            self.log_event(f"{self.name}: reconnected; everything missed has been logged.")
        self.down = False
        return True

    def _tell_what_is_missing(self, run: Run) -> None:
        try:
            epochs = run.epochs()
        except Exception:  # told already
            return
        told = self.told.get(run.path)
        missing = len(epochs) - (len(told.sent) if told else 0)
        if missing > 0 or (self.down and epochs):
            what = f"{missing} of {len(epochs)} epochs" if missing > 0 else "the final status"
            self.log_event(f"{self.name}: not logged: {what} of {full_name(run)}. To log it later: {self.resume(run)}")
