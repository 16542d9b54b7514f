"""Supervises the driver of a submitted job, on the cluster: if it is killed, another one resumes its work.

The job's process forks before it imports anything large: the child becomes the driver, the parent waits for it. So the
job keeps its id and its log, and needs no client that stays connected. What Ray's own supervisor of the job survives is
not extended: it ends the processes of a job that it does not outlive.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Self

from resnet_ops.orchestration import job_protocol

VARIABLE = "RESNET_OPS_SUPERVISION"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Supervision:
    """The plan by which a job goes on after the loss of its driver.

    Args:
        losses: Losses to survive.
        arguments: Arguments of `resnet-ops` that resume the run.
        resumes: Whether the run existed when the job was submitted; otherwise a driver that is lost before it has
            created the run is started as it was the first time.
    """

    losses: int
    arguments: list[str]
    resumes: bool

    def to_environment(self) -> dict[str, str]:
        """Return the environment variable that hands it to the job."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def take_from_environment(cls) -> Self | None:
        """Return what the job was handed, once: the driver's own processes do not inherit it."""
        handed = os.environ.pop(VARIABLE, None)
        return None if handed is None else cls(**json.loads(handed))


def supervise(supervision: Supervision) -> None:
    """Return in a child of this process, the job's driver, and in another one whenever a driver was killed.

    This process itself ends with the exit code of the driver that ended by itself, or as the shell reports a signal.
    Ray signals all processes of a job that is stopped: the driver too, so nothing is passed on to it here.
    """
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    created = mmap.mmap(-1, 1)  # shared with the drivers: whether one of them has created the run
    created[0] = supervision.resumes
    for number in STOPPING:
        signal.signal(number, stop)
    for left in range(supervision.losses, -1, -1):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _become_driver(created, parent)
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code >= 0 or stopping or not left:
            os._exit(code if code >= 0 else 128 - code)
        if created[0]:
            sys.argv[1:] = supervision.arguments
        action = "resuming from the last checkpoint" if created[0] else "starting it again"
        sys.stderr.write(
            f"note: The job's driver was killed (signal {-code}); {action} ({left - 1} more failures allowed).\n"
        )
        sys.stderr.flush()


def _become_driver(created: mmap.mmap, parent: int) -> None:
    job_protocol.on_created = lambda: created.__setitem__(0, 1)
    # Without its supervisor nobody would stop it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    # A head node that was started in the background ignores SIGINT, and so do the processes it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    if os.getppid() != parent:  # it ended before the system was asked to tell
        os._exit(128 + signal.SIGTERM)
