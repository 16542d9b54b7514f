"""Stopping work that goes on: who asks for it, and why.

SIGTERM, SIGUSR1 (Slurm, before a job's time is over), SIGHUP (the terminal is gone) and Ctrl-C end a command at once,
with one line. Training defers them: the step in hand ends, and a checkpoint is written. A second signal ends it at
once, and so does `PATIENCE_S`.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Literal, NoReturn

from resnet_ops.errors import INTERRUPTED, PREEMPTED, UserError

CTRL_C = "Ctrl-C"
SIGNALS = {signal.SIGINT: CTRL_C} | {each: each.name for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
SAVING_S = 25.0  # that processes on other nodes have to save and to end
PATIENCE_S = 29.0  # before the process ends whatever it waits for: schedulers kill it after 30 s
ENDING_S = 9.0  # the same after a second signal
LAST_WORDS_S = 3.0  # to record and to tell the end of a process that is ended from outside its work


@dataclass(frozen=True)
class Stop:
    """The reason why work stops: a signal's name or `CTRL_C`; `preempted` unless the user wanted it.

    After one that `regroups`, workers go on by themselves, elsewhere.
    """

    reason: str
    preempted: bool
    regroups: bool = False

    @property
    def status(self) -> Literal["preempted", "interrupted"]:
        """The status of a run that stops for this."""
        return "preempted" if self.preempted else "interrupted"

    @property
    def why(self) -> str:
        """The reason in the record of a run that stops for this."""
        return f"preempted by {self.reason}" if self.preempted else "stopped by the user"

    @property
    def exit_code(self) -> int:
        """The exit code of a command that stops for this."""
        return PREEMPTED if self.preempted else INTERRUPTED

    def error(self, work: str, more: str = "", remedy: str = "") -> UserError:
        """Return what the user is told of `work`, such as 'Training', that has stopped."""
        cause = f"{work} was preempted ({self.reason})." if self.preempted else f"{work} stopped."
        return UserError(f"{cause} {more}".strip(), remedy, self.exit_code)


BY_USER = Stop(CTRL_C, preempted=False)


class StoppedError(KeyboardInterrupt):
    """Work has stopped, or is to stop at once."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


def stop_of(interrupt: KeyboardInterrupt) -> Stop:
    """Return why work stops: that of Python's own KeyboardInterrupt is Ctrl-C."""
    return interrupt.stop if isinstance(interrupt, StoppedError) else BY_USER


class StopRequest:
    """Asks the work of a command to stop; any thread may ask, and whoever works looks at it after each step.

    `stop` is why, or None. `at_once` is set by a second request: nothing more is saved. `ended_by` is what ended a
    command that did not defer it, or None. Where the process has to be ended from outside its work, `record` records
    why and returns what the user is told, and `report` tells it.
    """

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self.at_once = False
        self.ended_by: Stop | None = None
        self.record: Callable[[Stop], UserError] = lambda stop: stop.error("The work")
        self.report: Callable[[UserError], object] = lambda error: sys.stderr.write(f"error: {error}\n")
        self.is_deferring = False
        self.on_request: Callable[[], None] = lambda: None

    @property
    def requested(self) -> bool:
        """Return whether the work is to stop."""
        return self.stop is not None

    def request(self, reason: str, preempted: bool) -> None:
        """Ask the work to stop once the step in hand is done and saved; asked again, to stop at once.

        Also called by handlers of signals, so without a lock.
        """
        if self.stop is None:
            self.stop = Stop(reason, preempted)
        else:
            self.at_once = True

    def check(self) -> None:
        """Raise `StoppedError` if the work is to stop, where there is nothing to save."""
        if self.stop is not None:
            raise StoppedError(self.stop)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within a `with` block, raise `StoppedError` for what fails after a signal whose own a library has caught.

        So does torch where a signal comes while it imports, and goes on with half a module.

        Raises:
            StoppedError: There was a signal, which was not deferred.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.ended_by is None:
                raise
            raise StoppedError(self.ended_by) from error

    def give_up(self, stop: Stop) -> NoReturn:
        """End the process, whatever its threads wait for."""

        def last_words() -> None:
            self.report(self.record(stop))

        # The disk may hang, too.
        thread = threading.Thread(target=last_words, name="last words", daemon=True)
        thread.start()
        thread.join(LAST_WORDS_S)
        os._exit(stop.exit_code)

    @contextlib.contextmanager
    def deferring(self, on_request: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within a `with` block, have a first signal of `receive_signals` request a stop, instead of ending all.

        Args:
            on_request: Called on another thread when that happens.
        """
        self.on_request, self.is_deferring = on_request, True
        yield
        self.is_deferring = False  # after an error it stays so: what ends then is given as long


@contextlib.contextmanager
def receive_signals(request: StopRequest) -> Iterator[None]:
    """Receive signals on the main thread for the length of a `with` block.

    One that was ignored when the process began stays so, as nohup and shells want it.

    Args:
        request: Is asked to stop where work defers signals; elsewhere `StoppedError` is raised.
    """
    received, wake = os.pipe()
    os.set_blocking(wake, False)
    watch = threading.Thread(target=_watch, args=(received, request), name="signals", daemon=True)
    watch.start()

    def receive(number: int, _: FrameType | None) -> None:
        stop, ends = _stop(number), request.at_once
        if request.is_deferring:
            request.request(stop.reason, stop.preempted)
            if not request.at_once or ends:  # what ends is not disturbed: the thread sees to it that it does
                return
        request.ended_by = stop
        raise StoppedError(stop)

    taken = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in taken}
    woken_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        watch.join()
        os.close(received)


def _watch(received: int, request: StopRequest) -> None:
    """End the process in time, whatever its main thread waits for: there no handler runs until it is done."""
    stop, deadline = BY_USER, math.inf
    while True:
        left_s = deadline - time.monotonic()
        if request.is_deferring and left_s <= 0:
            request.give_up(stop)
        if not select.select([received], [], [], min(max(left_s, 0.1), 60.0))[0]:
            continue
        numbers = os.read(received, 64)
        if not numbers:
            return
        for number in numbers:
            if number not in SIGNALS or not request.is_deferring:
                continue
            if deadline == math.inf:
                stop, deadline = _stop(number), time.monotonic() + PATIENCE_S
                request.on_request()
            else:
                deadline = min(deadline, time.monotonic() + ENDING_S)


def _stop(number: int) -> Stop:
    return Stop(SIGNALS[signal.Signals(number)], number != signal.SIGINT)
