"""Reports runs to TensorBoard's files and to MLflow or W&B, from the process that the user started.

Everything is read from the run directories, so that it is the same wherever the workers are; the only secrets are those
of this process's environment; nothing that fails here stops a training. What is sent, and how, is in the other modules.
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
from resnet_ops.tracking.payload import SERVICE_NAMES
from resnet_ops.tracking.tensorboard import EventFiles
from resnet_ops.tracking.uploader import Uploader

ENVIRONMENT = {
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
    "wandb": ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE"),
}
LAST_UPLOAD_S = 120.0  # how long a command that is done waits for a service at most


def check_service(track: str) -> None:
    """Check that a service can be used: its library is installed, and credentials are configured.

    Raises:
        UserError: It is not, or they are not.
    """
    if track == "none":
        return
    spec = importlib.util.find_spec(track)
    if spec is None or spec.origin is None:  # a folder of that name in the working directory, such as W&B makes
        raise UserError(f"--track {track} needs {SERVICE_NAMES[track]}:", f"pip install 'resnet-ops[{track}]'")
    if track == "wandb":
        from resnet_ops.tracking.wandb import check_login

        check_login()


def service_environment(track: str) -> dict[str, str]:
    """Return the environment variables that a job on a cluster needs to track as this process would: no secrets.

    Raises:
        UserError: One that this service needs contains a secret.
    """
    variables = {name: os.environ[name] for names in ENVIRONMENT.values() for name in names if os.environ.get(name)}
    for name in [name for name, value in variables.items() if "@" in value]:
        del variables[name]
        if name in ENVIRONMENT.get(track, ()):
            raise UserError(
                f"{name} contains a user name or a secret, which would be visible to everyone on the cluster.",
                "Remove it; give the nodes access through their environment.",
            )
    return variables


class UpdateThread:
    """Passes runs that have changed to a function on a thread; a run that changes meanwhile is passed once more only.

    MLflow and W&B are imported and called on such a thread, since a process of its own saved nothing. ResNet-8,
    5 epochs of digits, a local MLflow, 2 cores, medians of 6: first step after 4.1 s, total 5.7 s; with a process 4.3 s
    and 6.3 s; untracked 3.3 s and 4.3 s.

    Args:
        name: Of the thread.
        update: Called with the runs that have changed, and for each whether it has ended; raises nothing.
    """

    def __init__(self, name: str, update: Callable[[dict[Path, bool]], None]) -> None:
        self.update = update
        self.condition = threading.Condition()
        self.pending: dict[Path, bool] = {}
        self.ended: set[Path] = set()
        self.closed = False
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)  # one that hangs can be abandoned

    def put(self, run: Path, ended: bool) -> None:
        """Enter a run that has changed; return at once. Of one that has ended, late changes would open it again."""
        with self.condition:
            if run in self.ended and not ended:
                return
            if ended:
                self.ended.add(run)
            self.pending[run] = ended or self.pending.get(run, False)
            self.condition.notify()

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait until all is passed on; return whether it was in time."""
        with self.condition:
            self.closed = True
            self.condition.notify()
        self.thread.join(timeout_s)
        return not self.thread.is_alive()

    def _loop(self) -> None:
        while pending := self._take():
            self.update(pending)

    def _take(self) -> dict[Path, bool]:
        """Wait for runs that have changed; return none once it is closed and all are taken."""
        with self.condition:
            self.condition.wait_for(lambda: self.pending or self.closed)
            pending, self.pending = self.pending, {}
            return pending


class Tracker:
    """Reports what runs do for the length of a `with` block, to each destination on a thread of its own.

    Args:
        track: The service, or "none".
        log_event: Called, from the threads, with where a service shows the runs, and with what failed.
        resume_command: Returns the command that resumes a run, and so uploads what could not be.
    """

    def __init__(self, track: str, log_event: Callable[[str], None], resume_command: Callable[[Run], str]) -> None:
        self.track, self.log_event = track, log_event
        self.open_runs: dict[Path, Run] = {}
        self.event_files = UpdateThread("tensorboard", EventFiles(log_event).update)
        self.uploads: UpdateThread | None = None
        if track != "none":
            self.uploads = UpdateThread(track, Uploader(track, log_event, resume_command).update)

    def __enter__(self) -> Self:
        for thread in filter(None, (self.event_files, self.uploads)):
            thread.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in list(self.open_runs.values()):
            self.update(run, ended=True)
        self.event_files.close()
        if self.uploads is not None and not self.uploads.close(LAST_UPLOAD_S):
            self.log_event(f"{SERVICE_NAMES[self.track]} did not respond within {LAST_UPLOAD_S:.0f} s; not waiting.")

    def update(self, run: Run, ended: bool = False) -> None:
        """Report a run that has begun, trained an epoch, or ended; return at once."""
        if ended:
            self.open_runs.pop(run.path, None)
        else:
            self.open_runs[run.path] = run
        for thread in filter(None, (self.event_files, self.uploads)):
            thread.put(run.path, ended)
