"""A process that hangs is ended, and says where it hung; one that works is left alone."""

import subprocess
import sys
from pathlib import Path

from resnet_ops.training.worker import EXIT_CODE

CODE = """
import sys, time
from pathlib import Path
from resnet_ops.training.worker import Watchdog

watchdog = Watchdog(0.6, Path(sys.argv[1]), lambda what: print(what, flush=True))
def hang_here(): time.sleep(30)
with watchdog.watching():
    time.sleep(1.5)  # before the first beat there is nothing to compare with
    for _ in range(10):
        watchdog.beat()
        time.sleep(0.15)
    print("worked", flush=True)
    if sys.argv[2] == "hang":
        hang_here()
print("left", flush=True)
"""


def run(traces: Path, what: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CODE, str(traces), what], capture_output=True, text=True, timeout=20, check=False
    )


def test_a_hang_ends_the_process(tmp_path: Path) -> None:
    ended = run(tmp_path / "traces", "hang")
    assert ended.returncode == EXIT_CODE
    worked, told = ended.stdout.splitlines()
    assert worked == "worked"
    assert "no step for 0.6 s" in told
    assert "hang_here" in (tmp_path / "traces").read_text()


def test_work_is_left_alone(tmp_path: Path) -> None:
    ended = run(tmp_path / "traces", "work")
    assert (ended.returncode, ended.stdout.split()) == (0, ["worked", "left"])
    assert not (tmp_path / "traces").exists()
