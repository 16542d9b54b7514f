"""Who is told what a training job does. Apart from `job`, so that a screen is up before torch is."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from resnet_ops.errors import PausedError
from resnet_ops.records import Epoch, RunRecord
from resnet_ops.runs import Run


class Observer:
    """Told what a job does, from a thread of its own; does nothing, for others to override."""

    def run_created(self, run: Run, record: RunRecord) -> None:
        """The request was found sound, and the run directory is there."""

    def warn(self, message: str) -> None:
        """Something the user should know, e.g. that a damaged checkpoint was passed over."""

    def progress(self, progress: dict[str, Any]) -> None:
        """progress.json changed."""

    def epoch_done(self, epoch: Epoch) -> None:
        """An epoch was trained, validated and saved."""


@contextlib.contextmanager
def follow(run: Run, observer: Observer, tracked: Callable[[Run], None]) -> Iterator[None]:
    """Tell the observer what appears in the run directory, wherever the workers are, and have `tracked` look at it."""
    done = threading.Event()

    def look() -> None:
        told, changed, noticed = len(run.epochs()), 0, len(run.events())
        last = False
        while not last:  # one look more once it is done, for what came since
            last = done.wait(run.interval_s)
            for event in run.events()[noticed:]:
                observer.warn(event.what)
                noticed += 1
            progress, changed = run.read_progress(changed)
            if progress is not None:
                observer.progress(progress)
            elif not last:
                continue
            epochs = run.epochs()
            for epoch in epochs[told:]:
                observer.epoch_done(epoch)
                tracked(run)
            told = len(epochs)

    def look_while_someone_reads() -> None:
        with contextlib.suppress(BrokenPipeError, PausedError):  # terminal or bucket gone; the work goes on
            look()

    thread = threading.Thread(target=look_while_someone_reads, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
