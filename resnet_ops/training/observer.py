"""Follows a run's directory and reports its progress.

Apart from `job`, so that a screen is up before torch is imported.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from resnet_ops.errors import PausedError
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run


class Observer:
    """Receives the progress of a job, from a thread of its own; does nothing itself."""

    def run_created(self, run: Run, record: RunRecord) -> None:
        """Called when the checks have passed and the run directory exists."""

    def warn(self, message: str) -> None:
        """Called with what the user should know, such as a damaged checkpoint that was skipped."""

    def stopping(self) -> None:
        """Called when the work was asked to stop, and saves a checkpoint first."""

    def progress(self, progress: dict[str, Any]) -> None:
        """Called when progress.json has changed."""

    def epoch_done(self, epoch: Epoch) -> None:
        """Called when an epoch has been trained, validated and saved."""


@contextlib.contextmanager
def follow(run: Run, observer: Observer, tracked: Callable[[Run], None]) -> Iterator[None]:
    """Report what appears in the run directory, wherever its workers are; call `tracked` for each epoch."""
    done = threading.Event()

    def poll() -> None:
        reported, changed, warned = len(run.epochs()), 0, len(run.events())
        last = False
        while not last:  # once more when it is done, for what came since
            last = done.wait(run.interval_s)
            for event in run.events()[warned:]:
                observer.warn(event.what)
                warned += 1
            progress, changed = run.read_progress(changed)
            if progress is not None:
                observer.progress(progress)
            elif not last:
                continue
            epochs = run.epochs()
            for epoch in epochs[reported:]:
                observer.epoch_done(epoch)
                tracked(run)
            reported = len(epochs)

    def poll_while_someone_reads() -> None:
        with contextlib.suppress(
            BrokenPipeError, PausedError
        ):  # the terminal or the bucket is gone; training continues
            poll()

    thread = threading.Thread(target=poll_while_someone_reads, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
