"""The thread that passes changed runs on."""

import threading
from pathlib import Path

from resnet_ops.tracking.tracker import UpdateThread


def test_a_late_change_of_a_run_that_has_ended_is_dropped() -> None:
    """The follower of a run's directory may see its last epoch after the end was passed on."""
    passed: list[dict[Path, bool]] = []
    taken = threading.Event()

    def update(changed: dict[Path, bool]) -> None:
        passed.append(changed)
        taken.set()

    updates = UpdateThread("test", update)
    updates.thread.start()
    updates.put(Path("run"), ended=True)
    assert taken.wait(10)
    updates.put(Path("run"), ended=False)
    updates.put(Path("another"), ended=False)
    assert updates.close(10)
    assert [path for changed in passed for path in changed] == [Path("run"), Path("another")]
