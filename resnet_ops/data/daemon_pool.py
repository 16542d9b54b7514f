"""Threads for work that may hang for ever, such as reading from a file server that is gone."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
CLOSE_S = 10.0  # for calls that are running; those that hang are not waited for


class DaemonPool:
    """Threads that call functions in the order in which they are submitted; what is left at the end is dropped.

    The threads of a ThreadPoolExecutor would keep the process from ending while one of them hangs.
    """

    def __init__(self, threads: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"pool-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Return the future result of `function`."""
        future: Future[T] = Future()
        self._tasks.put((future, function))
        return future

    def __enter__(self) -> "DaemonPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            future, function = task
            try:
                future.set_result(function())
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)
            del task, future, function  # or an idle thread would hold what they hold
