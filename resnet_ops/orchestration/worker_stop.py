"""How workers in processes of Ray are asked to stop.

By their driver, wherever it is, by a signal of their own, because their nodes are about to leave the cluster, or because
the cluster's head is lost.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType

from resnet_ops.orchestration.cluster_kv import NAMESPACE
from resnet_ops.orchestration.head_loss import HeadWatch, head_loss
from resnet_ops.orchestration.ray_internals import draining_nodes, kv_del, kv_get, kv_put
from resnet_ops.stop_request import SAVING_S, SIGNALS, Stop, StopRequest

POLL_INTERVAL_S = 0.5
JOIN_S = 2.0  # where the head is lost, what was asked of it is never answered
DELIVERY_S = 3.0  # for a result to reach the driver, if there is one
HEADLESS_EXIT_CODE = 87  # of a worker whose cluster has lost its head
OWN = StopRequest()  # of this process, where it is a worker


def ask_workers(run: str, stop: Stop) -> None:
    """Ask the workers of a run to save and to end."""
    kv_put(_key(run), json.dumps([stop.reason, stop.preempted]).encode(), NAMESPACE)


def withdraw(run: str) -> None:
    """Withdraw what `ask_workers` asked for, perhaps in an earlier process."""
    kv_del(_key(run), NAMESPACE)


@contextlib.contextmanager
def hear(run: str, nodes: Collection[str], leave: Callable[[set[str]], Stop], request: StopRequest) -> Iterator[None]:
    """Pass on, for the length of a `with` block, what the driver of a run asks for, and that nodes will leave.

    Args:
        run: The run.
        nodes: Ids of the nodes that the workers are on.
        leave: Returns why the work stops where some of them will leave.
        request: Is asked to stop.
    """
    from ray.exceptions import RayError

    done = threading.Event()

    def poll() -> None:
        with contextlib.suppress(RayError):  # the cluster's head is gone, which `end_without_head` sees to
            while not done.wait(POLL_INTERVAL_S):
                if asked := kv_get(_key(run), NAMESPACE):
                    request.request(*json.loads(asked))
                    return
                if not request.requested and (leaving := draining_nodes().intersection(nodes)):
                    stop = leave(leaving)
                    request.stop = request.stop or stop

    thread = threading.Thread(target=poll, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(JOIN_S)


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

    with HeadWatch(head, end).watching():
        yield
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
