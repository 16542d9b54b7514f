"""Waiting, in tests, for what other processes do."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], timeout_s: float = 90) -> None:
    """Wait until something comes true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)
