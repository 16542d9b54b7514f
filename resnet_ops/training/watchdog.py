"""Ends a worker that hangs, so that Ray can start another one.

A collective operation that waits for a dead peer, a file server that does not answer, a lock: the
process lives, answers Ray's polls, and does nothing. Only somebody who counts its steps can tell.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LAST_WORDS_S = 5.0
EXIT_CODE = 86  # told apart in Ray's account of a worker's death


class Watchdog:
    """Ends this process when no beat was heard for `timeout_s` seconds after the first.

    Args:
        timeout_s: Seconds between two beats that are too many.
        traces: File that gets every thread's stack first.
        tell: Told first which worker hangs.
    """

    def __init__(self, timeout_s: float, traces: Path, log_event: Callable[[str], None]) -> None:
        self.timeout_s, self.traces, self.log_event = timeout_s, traces, log_event
        self.last: float | None = None
        self.done = threading.Event()

    def beat(self) -> None:
        """Say that work goes on."""
        self.last = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of a `with` block."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.done.set()
            thread.join()

    def _watch(self) -> None:
        while not self.done.wait(min(1.0, self.timeout_s / 4)):
            if self.last is not None and time.monotonic() - self.last > self.timeout_s:
                # What hangs may be the disk that is written to now; the end comes all the same.
                threading.Thread(target=self._say_where, daemon=True).start()
                time.sleep(LAST_WORDS_S)
                os._exit(EXIT_CODE)

    def _say_where(self) -> None:
        with self.traces.open("a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.log_event(f"no step for {self.timeout_s:g} s; stack traces are in {self.traces}")
        os._exit(EXIT_CODE)
