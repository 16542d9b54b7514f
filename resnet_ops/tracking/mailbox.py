"""Which runs are to be looked at: left here by one thread, taken by another."""

import threading
from pathlib import Path


class Mailbox:
    """Runs that have news, each but once, however much there is, and whether it has ended."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.due: dict[Path, bool] = {}
        self.closed = False

    def put(self, run: Path, ended: bool) -> None:
        """A run has begun, trained an epoch, or ended; returns at once."""
        with self.changed:
            self.due[run] = ended or self.due.get(run, False)
            self.changed.notify()

    def close(self) -> None:
        """There will be no more."""
        with self.changed:
            self.closed = True
            self.changed.notify()

    def take(self) -> dict[Path, bool]:
        """Wait for news, and take it; {} where there is none and will be no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.due or self.closed)
            due, self.due = self.due, {}
            return due
