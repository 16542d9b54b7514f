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

LOST_AFTER_S = 8.0
POLL_INTERVAL_S = 2.0
RAYS_TIMEOUT = "RAY_gcs_rpc_server_reconnect_timeout_s"
BEFORE_RAY_S = 10.0  # to save and to report, before Ray's own end of the process


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

    def wait_for_answer(self) -> None:
        """Wait until the head answers, or for ever if it is lost: `on_loss` then decides."""
        while self.lost or not head_answers(self.address, POLL_INTERVAL_S):
            time.sleep(POLL_INTERVAL_S)

    def _watch(self) -> None:
        limit_s = patience_s()
        while not head_answers(self.address, POLL_INTERVAL_S):
            if self._done.wait(POLL_INTERVAL_S):
                return
        answered_at = time.monotonic()
        while not self._done.wait(POLL_INTERVAL_S):
            if head_answers(self.address, POLL_INTERVAL_S):
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at >= limit_s:
                self.lost = True
                self.on_loss()
                return
