"""How workers in processes of Ray are asked to stop.

By their driver, wherever it is, by a signal of their own, because their nodes will leave the cluster, or because its
head is lost.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any

from resnet_ops.orchestration.cluster_kv import NAMESPACE
from resnet_ops.orchestration.head_loss import HeadWatch, head_loss
from resnet_ops.orchestration.ray_internals import draining_nodes, kv_del, kv_get, kv_put
from resnet_ops.stop_request import BY_USER, SAVING_S, SIGNALS, Stop, StoppedError, StopRequest

POLL_INTERVAL_S = 0.5
FITTING_POLL_S = 0.2
DELIVERY_S = 3.0  # for a result to reach the driver, if there is one
HEADLESS_EXIT_CODE = 87  # of a worker whose cluster has lost its head
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
def hear(
    run: str, request: StopRequest, nodes: Collection[str] = (), leave: Callable[[set[str]], Stop] | None = None
) -> Iterator[None]:
    """Pass on, for the length of a `with` block, what the driver of a run asks for, and that nodes will leave.

    Args:
        run: The run.
        request: Is asked to stop.
        nodes: Ids of the nodes that the workers are on.
        leave: Returns why the work stops where some of them will leave.
    """
    from ray.exceptions import RayError

    done = threading.Event()

    def poll() -> None:
        with contextlib.suppress(RayError):  # the cluster's head is gone, which `end_without_head` sees to
            while not done.wait(POLL_INTERVAL_S):
                if asked := kv_get(_key(run), NAMESPACE):
                    request.request(*json.loads(asked))
                    return
                if leave and not request.requested and (leaving := draining_nodes().intersection(nodes)):
                    stop = leave(leaving)
                    request.stop = request.stop or stop

    threading.Thread(target=poll, name="stop", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def end_without_head(request: StopRequest) -> Iterator[None]:
    """Ask for a stop, within a `with` block, if the cluster's head is lost, and then end this process.

    Nobody else would, until Ray itself does: a minute later, while another driver may have resumed the run.
    """
    import ray

    head, done = ray.get_runtime_context().gcs_address, threading.Event()

    def end() -> None:
        request.stop = request.stop or head_loss(head)
        done.wait(SAVING_S)
        time.sleep(DELIVERY_S)
        os._exit(HEADLESS_EXIT_CODE)

    try:
        with HeadWatch(head, end).watching():
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
