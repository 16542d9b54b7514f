"""Writes to the disk while training goes on."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


class Writer:
    """Does one thing at a time, in order, on a thread of its own."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.pending: Future[None] | None = None

    def start(self, write: Callable[..., None], *arguments: Any) -> None:
        """Begin to write, once what was begun before is done.

        Raises:
            PausedError: What was begun before met a full disk.
        """
        self.wait()
        self.pending = self.pool.submit(write, *arguments)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            PausedError: It met a full disk.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


@contextmanager
def writing() -> Iterator[Writer]:
    """Give a writer for the length of a `with` block, and leave when all is written."""
    with ThreadPoolExecutor(1, "checkpoint") as pool:
        writer = Writer(pool)
        yield writer
        writer.wait()
