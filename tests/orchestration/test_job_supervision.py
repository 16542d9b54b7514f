"""The supervision of a job's driver: real processes, which are really killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_ops.orchestration.job_supervision import Supervision
from tests.processes import command_line, descendants
from tests.waiting import wait_for

# A driver that writes what it was started with and what it ends with next, of `ENDS`: an exit code, or a signal's
# negative number, or "created" before it, or "wait".
DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from resnet_ops.orchestration import job_protocol
from resnet_ops.orchestration.job_supervision import Supervision, supervise

supervise(Supervision.take_from_environment())
assert Supervision.take_from_environment() is None
folder = Path(os.environ["FOLDER"])
number = len(list(folder.iterdir()))
(folder / str(number)).write_text(json.dumps([os.getpid(), *sys.argv[1:]]))
for end in json.loads(os.environ["ENDS"])[number]:
    if end == "created":
        job_protocol.report_milestone("created")
    elif end == "wait":
        time.sleep(60)
    elif end < 0:
        os.kill(os.getpid(), -end)
    else:
        sys.exit(end)
"""


def start(folder: Path, *ends: list[object], losses: int = 2, resumes: bool = False) -> "subprocess.Popen[str]":
    variables = Supervision(losses, ["again"], resumes).to_environment()
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, "first"],
        env=os.environ | variables | {"FOLDER": str(folder), "ENDS": json.dumps(ends)},
        stderr=subprocess.PIPE,
        text=True,
    )


def started_with(folder: Path) -> list[str]:
    return [json.loads((folder / str(number)).read_text())[1] for number in range(len(list(folder.iterdir())))]


@pytest.mark.parametrize(
    ("ends", "arguments", "code"),
    [
        ([[0]], ["first"], 0),
        ([[75]], ["first"], 75),  # it ended by itself
        ([[-9], ["created", -9], [3]], ["first", "first", "again"], 3),
        ([["created", -6], [-9], [0]], ["first", "again", "again"], 0),
        ([[-9]] * 3, ["first"] * 3, 137),  # too often
    ],
)
def test_a_driver_that_was_killed_is_started_again(
    tmp_path: Path, ends: list[list[object]], arguments: list[str], code: int
) -> None:
    process = start(tmp_path, *ends)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert started_with(tmp_path) == arguments
    assert err.count("The job's driver was killed") == len(arguments) - 1


def test_a_job_that_resumes_a_run_resumes_it_again(tmp_path: Path) -> None:
    process = start(tmp_path, [-9], [0], resumes=True)
    process.communicate(timeout=30)
    assert started_with(tmp_path) == ["first", "again"]


def test_a_job_that_is_stopped_is_not_started_again(tmp_path: Path) -> None:
    """Ray signals the supervisor and the driver, and kills what has not ended then."""
    process = start(tmp_path, ["created", "wait"], [0])
    wait_for(lambda: list(tmp_path.iterdir()))
    (driver,) = descendants(process.pid)[1:]
    process.send_signal(signal.SIGINT)
    os.kill(driver, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 137
    assert started_with(tmp_path) == ["first"]


def test_a_driver_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    process = start(tmp_path, ["wait"])
    wait_for(lambda: list(tmp_path.iterdir()))
    (driver,) = descendants(process.pid)[1:]
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: not command_line(driver), 10)
