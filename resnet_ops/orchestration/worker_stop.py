"""How workers in processes of Ray are asked to stop: by their driver, wherever it is, or by a signal of their own."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from resnet_ops.orchestration.cluster_kv import NAMESPACE
from resnet_ops.orchestration.ray_internals import kv_del, kv_get, kv_put
from resnet_ops.stop_request import SIGNALS, Stop, StopRequest

POLL_INTERVAL_S = 0.5
OWN = StopRequest()  # of this process, where it is a worker


def ask_workers(run: str, stop: Stop) -> None:
    """Ask the workers of a run to save and to end."""
    kv_put(_key(run), json.dumps([stop.reason, stop.preempted]).encode(), NAMESPACE)


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

    thread = threading.Thread(target=poll, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
