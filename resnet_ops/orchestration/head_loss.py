"""Notices that the head of a Ray cluster is lost, long before Ray does.

Calls of Ray then wait, until its C++ code ends the process with text of its own: after 60 s, or what
RAY_gcs_rpc_server_reconnect_timeout_s says. Whoever sets that, as KubeRay does where the head's state is kept outside
of it, expects the head to come back; then it is waited for.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from resnet_ops.orchestration.ray_internals import head_answers
from resnet_ops.stop_request import Stop

LOST_AFTER_S = 7.0
MISSES = 3  # at least: this machine itself may have been too busy
POLL_INTERVAL_S, RETRY_INTERVAL_S = 2.0, 1.0
ANSWER_S = 1.5
WORKERS_SAVE_S = 3.0  # to save by themselves, before their driver reports
RAYS_TIMEOUT = "RAY_gcs_rpc_server_reconnect_timeout_s"
BEFORE_RAY_S = 10.0  # to save and to report, before Ray's own end of the process


def head_loss(address: str) -> Stop:
    """Return why work stops whose cluster has lost its head."""
    return Stop(f"loss of the cluster's head at {address}", preempted=True)


def wait_for_head() -> None:
    """Wait until the head of the connected cluster answers; where it is lost, the watch ends this process."""
    import ray

    while not head_answers(ray.get_runtime_context().gcs_address, ANSWER_S):
        time.sleep(RETRY_INTERVAL_S)


def patience_s() -> float:
    """Return how long the head may be silent."""
    try:
        return max(LOST_AFTER_S, float(os.environ[RAYS_TIMEOUT]) - BEFORE_RAY_S)
    except (KeyError, ValueError):
        return LOST_AFTER_S


class HeadWatch:
    """Watches, on a thread of its own, whether the head of the cluster answers.

    Args:
        address: The head's host:port.
        on_loss: Called once, on that thread, if it has not answered for so long. A head that has never answered, for
            example through a network that lets only Ray through, is not watched.
    """

    def __init__(self, address: str, on_loss: Callable[[], None]) -> None:
        self.address, self.on_loss = address, on_loss
        self.lost = False
        self._done = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of a `with` block; if the head was lost in it, `on_loss` is still completed."""
        threading.Thread(target=self._watch, name="head", daemon=True).start()
        try:
            yield
        finally:
            self._done.set()

    def _watch(self) -> None:
        limit_s = patience_s()
        while not head_answers(self.address, ANSWER_S):
            if self._done.wait(POLL_INTERVAL_S):
                return
        answered_at, misses = time.monotonic(), 0
        while not self._done.wait(RETRY_INTERVAL_S if misses else POLL_INTERVAL_S):
            if head_answers(self.address, ANSWER_S):
                answered_at, misses = time.monotonic(), 0
                continue
            misses += 1
            if misses >= MISSES and time.monotonic() - answered_at >= limit_s:
                self.lost = True
                self.on_loss()
                return
