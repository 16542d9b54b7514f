"""How workers in processes of Ray are asked to stop: by their driver, wherever it is, or by a signal of their own."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any

from resnet_ops.orchestration.cluster_kv import NAMESPACE
from resnet_ops.orchestration.ray_internals import kv_del, kv_get, kv_put
from resnet_ops.stop_request import BY_USER, SAVING_S, SIGNALS, Stop, StoppedError, StopRequest

POLL_INTERVAL_S = 0.5
FITTING_POLL_S = 0.2
OWN = StopRequest()  # of this process, where it is a worker


def ask_workers(run: str, stop: Stop) -> None:
    """Ask the workers of a run to save and to end."""
    kv_put(_key(run), json.dumps([stop.reason, stop.preempted]).encode(), NAMESPACE)


def wait_for_workers(fitting: Future[Any], request: StopRequest, ask: Callable[[Stop], None]) -> Any:
    """Return the result of Ray Train or Tune, which run on another thread: on the main one they would take Ctrl-C.

    Args:
        fitting: Their result.
        request: What may ask the workers to stop.
        ask: Asks them, once.

    Raises:
        StoppedError: They have not saved and ended in time, or were not to.
    """
    deadline = math.inf
    while time.monotonic() < deadline and not request.at_once:
        if request.stop is not None and deadline == math.inf:
            ask(request.stop)
            deadline = time.monotonic() + SAVING_S
        with contextlib.suppress(TimeoutError):
            return fitting.result(timeout=FITTING_POLL_S)
        if fitting.done():  # with a TimeoutError of its own
            return fitting.result()
    raise StoppedError(request.stop or BY_USER)


def withdraw(run: str) -> None:
    """Withdraw what `ask_workers` asked for, perhaps in an earlier process."""
    kv_del(_key(run), NAMESPACE)


@contextlib.contextmanager
def hear_driver(run: str, request: StopRequest) -> Iterator[None]:
    """Pass on what the driver of a run asks for, for the length of a `with` block."""
    from ray.exceptions import RayError

    done = threading.Event()

    def poll() -> None:
        with contextlib.suppress(RayError):  # the cluster's head is gone, which Ray deals with
            while not (asked := kv_get(_key(run), NAMESPACE)):
                if done.wait(POLL_INTERVAL_S):
                    return
            request.request(*json.loads(asked))

    threading.Thread(target=poll, name="stop", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def take_signals() -> None:
    """Have signals ask this process to stop; a second one ends it. To be called on the main thread.

    There Ray has a handler of SIGTERM that ends it at once.
    """

    def receive(number: int, _: FrameType | None) -> None:
        if OWN.requested:
            raise SystemExit(1)
        OWN.request(SIGNALS[signal.Signals(number)], preempted=True)

    for number in SIGNALS:
        if number != signal.SIGINT:  # a terminal's, which the driver hears too
            signal.signal(number, receive)


def _key(run: str) -> str:
    return f"stop/{run}"
