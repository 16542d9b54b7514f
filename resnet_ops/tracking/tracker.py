"""Tells what runs do to TensorBoard's files and to a service, from where the user started them.

It reads what the run directories say, so that it is the same wherever the workers are; it knows no secret but
those of its own environment; and nothing that fails here stops a training.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import resnet_ops
from resnet_ops.errors import UserError
from resnet_ops.options import as_typed
from resnet_ops.runs import Run
from resnet_ops.tracking.mailbox import Mailbox
from resnet_ops.tracking.tensorboard import EventFile
from resnet_ops.tracking.told import NAMES, reason

SETTINGS = {
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
    "wandb": ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE"),
}
LAST_WORDS_S = 120.0  # how long a command that is done waits for a service at most


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
    """Tells what runs do for the length of a `with` block: files on a thread, a service from a process of its own.

    Args:
        track: The service, or "none".
        tell: Told in a line where a service can be looked at, and that one does not answer.
        resume: What to type to have a run go on, and so to send what could not be sent.
    """

    def __init__(self, track: str, tell: Callable[[str], None], resume: Callable[[Run], str]) -> None:
        self.track, self.tell, self.resume = track, tell, resume
        self.open: dict[Path, Run] = {}
        self.events: dict[Path, EventFile] = {}
        self.mailbox = Mailbox()
        self.failed = False
        self.thread = threading.Thread(target=self._write, name="tensorboard", daemon=True)
        self.service: Service | None = None

    def __enter__(self) -> Self:
        self.thread.start()
        if self.track != "none":
            self.service = Service(self.track, self.tell)
            for run in self.open.values():
                self.service.look(run, False, self.resume(run))
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
            self.service.look(run, ended, self.resume(run))

    def _write(self) -> None:
        while due := self.mailbox.take():
            for path, ended in due.items():
                try:
                    self._write_events(Run(path), ended)
                except Exception as error:
                    if not self.failed:
                        self.tell(f"TensorBoard: files cannot be written: {reason(error)}. Training continues.")
                    self.failed = True

    def _write_events(self, run: Run, ended: bool) -> None:
        if run.path not in self.events:
            self.events[run.path] = EventFile(run, run.read_as_written())
        try:
            self.events[run.path].catch_up(run.epochs())
        finally:
            if ended:
                self.events.pop(run.path).close()


class Service:
    """The process that tells MLflow or W&B.

    Not a thread: to import MLflow takes 2 s, in which it and the training would take turns at Python's lock; and what
    hangs can be left.
    """

    def __init__(self, track: str, tell: Callable[[str], None]) -> None:
        self.name, self.tell = NAMES[track], tell
        code = str(Path(resnet_ops.__file__).parents[1])  # what runs, rather than what is installed
        self.process = subprocess.Popen(  # noqa: S603  # our own
            [sys.executable, "-P", "-m", "resnet_ops.tracking.service", track],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the training, whose end it is to tell
            env=os.environ | {"PYTHONPATH": os.pathsep.join([code, os.environ.get("PYTHONPATH", "")]).rstrip(":")},
        )
        self.thread = threading.Thread(target=self._hear, name="track", daemon=True)
        self.thread.start()

    def look(self, run: Run, ended: bool, resume: str) -> None:
        """Have it look at a run."""
        self._say({"run": as_typed(run.path), "ended": ended, "resume": resume})

    def close(self) -> None:
        """Wait until it has told what there is to tell."""
        self._say({"close": True})
        try:
            self.process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self.tell(f"{self.name}: did not finish in time; not waiting any longer.")
        finally:
            self.process.kill()
            self.process.wait()
            self.thread.join()

    def _say(self, message: dict[str, object]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # its end is told where it is heard
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        done = False
        for line in self.process.stdout:
            done = line == "done\n"
            if not done:
                self.tell(json.loads(line))
        if not done and (code := self.process.wait()) > 0:
            self.tell(f"{self.name}: logging stopped: its process exited with code {code}. Training continues.")
