"""Tells what runs do to TensorBoard's files and to a service, from where the user started them.

It reads what the run directories say, so that it is the same wherever the workers are; it knows no secret but
those of its own environment; and nothing that fails here stops a training.
"""

import importlib.util
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from resnet_ops.errors import UserError
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import NAMES, error_line
from resnet_ops.tracking.tensorboard import EventFile
from resnet_ops.tracking.uploader import PendingRuns, Uploader

SETTINGS = {
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
    "wandb": ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE"),
}


def check(track: str) -> None:
    """See that a service can be told: its library is there, and it knows whom to ask.

    Raises:
        UserError: It is not, or does not.
    """
    if track == "none":
        return
    found = importlib.util.find_spec(track)
    if found is None or found.origin is None:  # a folder of that name here, such as W&B makes
        raise UserError(f"--track {track} needs {NAMES[track]}:", f"pip install 'resnet-ops[{track}]'")
    if track == "wandb":
        from resnet_ops.tracking.wandb import check

        check()


def settings(track: str) -> dict[str, str]:
    """What a job elsewhere must be told of this environment to track as if it were here: no secrets.

    Raises:
        UserError: There is one in what it must be told.
    """
    found = {name: os.environ[name] for names in SETTINGS.values() for name in names if os.environ.get(name)}
    for name in [name for name, value in found.items() if "@" in value]:
        del found[name]
        if name in SETTINGS.get(track, ()):
            raise UserError(
                f"{name} contains a user name or a secret, which would be visible to everyone on the cluster.",
                "Remove it; give the nodes access through their environment.",
            )
    return found


class Tracker:
    """Tells what runs do for the length of a `with` block, each on a thread of its own.

    Args:
        track: The service, or "none".
        log_event: Told in a line where a service can be looked at, and that one does not answer.
        resume: What to type to have a run go on, and so to send what could not be sent.
    """

    def __init__(self, track: str, log_event: Callable[[str], None], resume: Callable[[Run], str]) -> None:
        self.log_event = log_event
        self.open: dict[Path, Run] = {}
        self.events: dict[Path, EventFile] = {}
        self.mailbox = PendingRuns()
        self.failed = False
        self.thread = threading.Thread(target=self._write, name="tensorboard", daemon=True)
        self.service = None if track == "none" else Uploader(track, log_event, resume)

    def __enter__(self) -> Self:
        self.thread.start()
        if self.service is not None:
            self.service.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in list(self.open.values()):
            self.look(run, ended=True)
        self.mailbox.close()
        self.thread.join()
        if self.service is not None:
            self.service.close()

    def look(self, run: Run, ended: bool = False) -> None:
        """Have a look at a run, which has begun, trained an epoch, or ended; returns at once."""
        if ended:
            self.open.pop(run.path, None)
        else:
            self.open[run.path] = run
        self.mailbox.put(run.path, ended)
        if self.service is not None:
            self.service.mailbox.put(run.path, ended)

    def _write(self) -> None:
        while due := self.mailbox.take():
            for path, ended in due.items():
                try:
                    self._write_events(Run(path), ended)
                except Exception as error:
                    if not self.failed:
                        self.log_event(
                            f"TensorBoard: files cannot be written: {error_line(error)}. Training continues."
                        )
                    self.failed = True

    def _write_events(self, run: Run, ended: bool) -> None:
        if run.path not in self.events:
            self.events[run.path] = EventFile(run, run.read_as_written())
        try:
            self.events[run.path].catch_up(run.epochs())
        finally:
            if ended:
                self.events.pop(run.path).close()
