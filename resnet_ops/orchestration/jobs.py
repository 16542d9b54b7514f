"""Jobs of resnet-ops on a Ray cluster: submit one, follow its log to the end, list and stop them.

How the job server is reached is in `job_client`.
"""

import asyncio
import secrets
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

import resnet_ops
from resnet_ops.config_base import quoted
from resnet_ops.errors import BAD_REQUEST, INTERRUPTED, PREEMPTED, WORK_FAILED, UserError, did_you_mean
from resnet_ops.orchestration.job_client import UnreachableError, connect, explain_errors
from resnet_ops.orchestration.job_protocol import SUBMITTER, installed_versions, parse_milestone
from resnet_ops.orchestration.packaging import copy_package
from resnet_ops.orchestration.ray_internals import server_version
from resnet_ops.results import Moment, Result

OLDEST_RAY = (2, 60)  # that the shipped code works with
STOP_GRACE_S = 60  # from the signal to SIGKILL: time for a step and for a checkpoint on a slow disk
START_TIMEOUT_S = 60
LOG_TIMEOUT_S = 30.0  # to wait for the end of a log that the server does not get from its node
RUN, VERSION = "resnet_ops_run", "resnet_ops_version"  # keys of a job's metadata
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
# Exit codes of a driver that ended by itself; with any other it was killed, by a signal or with its node.
OWN_EXITS = {0, WORK_FAILED, BAD_REQUEST, PREEMPTED, INTERRUPTED}


class Job(Result):
    """One job, as the server reports it."""

    id: str = Field(serialization_alias="job_id", description="Its id; in JSON `job_id`.")
    run: str | None = Field(description="Name of its run; null if it is not a job of resnet-ops.")
    status: str = Field(description="PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.")
    exit_code: int | None = Field(description="Of the command, once it has ended.")
    started: Moment | None
    ended: Moment | None
    entrypoint: str = Field(description="Its command line.")
    message: str = Field(description="Ray's message on its status.")
    died: bool = Field(
        exclude=True, description="Whether its driver or supervisor was lost, which says nothing about the work itself."
    )

    @property
    def is_over(self) -> bool:
        """Return whether it has ended."""
        return self.status in ENDED


class JobList(Result):
    """The jobs of a cluster."""

    cluster: str = Field(description="URL of the job server.")
    jobs: tuple[Job, ...] = Field(description="The newest first.")


class SubmittedResult(Result):
    """The JSON result of a command that ran as a job, and the job's id."""

    model_config = ConfigDict(extra="allow")

    job_id: str


class JobServer:
    """A connection to a cluster's job server.

    Raises:
        UserError: It cannot be reached or refuses the connection; every method may raise this too.
    """

    def __init__(self, address: str | None) -> None:
        self._client = connect(address)
        self.address: str = self._client.get_address()

    def submit(self, job_id: str, arguments: list[str], run: str, environment: dict[str, str] | None = None) -> None:
        """Submit `resnet-ops` with these arguments, run by this code in the cluster's environment and `environment`."""
        self._check_version()
        with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder, explain_errors(self.address):
            self._client.submit_job(
                # Without exec a shell would receive the signals. Without the safe path a resnet_ops/ in the directory
                # that the cluster was started in would take precedence over the shipped one.
                entrypoint=f"PYTHONSAFEPATH=1 exec python -m resnet_ops.cli.main {shlex.join(arguments)}",
                submission_id=job_id,
                metadata={RUN: run, VERSION: resnet_ops.__version__},
                runtime_env={
                    "py_modules": [str(copy_package(Path(folder)))],
                    "env_vars": (environment or {})
                    | {
                        # Read by the job's supervisor (2.60). SIGTERM ends a driver that uses Ray at once.
                        "RAY_JOB_STOP_SIGNAL": "SIGINT",
                        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
                        SUBMITTER: ",".join(f"{name}={version}" for name, version in installed_versions().items()),
                    },
                },
            )

    def _check_version(self) -> None:
        version = server_version(self._client)
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers and numbers < OLDEST_RAY:
            oldest = ".".join(map(str, OLDEST_RAY))
            raise UserError(
                f"The cluster at {self.address} runs Ray {version}; resnet-ops needs {oldest} there.",
                f"Update the cluster: pip install 'ray[default,train]>={oldest}' on every node.",
            )

    def jobs(self) -> list[Job]:
        """Return all jobs that were submitted to the cluster, the newest first."""
        with explain_errors(self.address):
            jobs = [_read_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or datetime.max.replace(tzinfo=UTC), reverse=True)

    def job(self, job_id: str) -> Job:
        """Return the job as it is now."""
        with explain_errors(self.address):
            return _read_job(self._client.get_job_info(job_id))

    def find(self, name: str) -> Job:
        """Return the job with this id, or the newest job of the run of this name.

        Raises:
            UserError: There is none; names a similar one.
        """
        jobs = self.jobs()
        for job in jobs:
            if name in (job.id, job.run):
                return job
        known = [job.id for job in jobs] + [job.run for job in jobs if job.run]
        raise UserError(
            f"There is no job or run called {name!r} at {self.address}.",
            did_you_mean(name, known) or "List the jobs with: resnet-ops jobs list",
        )

    def request_stop(self, job_id: str) -> None:
        """Interrupt the job; it saves a checkpoint and ends some seconds later.

        Ray sends the signal once. If the head node was started with SIGINT ignored, as shells start background
        processes, a command that is still starting does not receive it and would run on: so this waits until the
        command has reported that it has started.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and not (job := self.job(job_id)).is_over:
            if job.run is None or "begun" in map(parse_milestone, self.log(job_id).split("\n")):
                break
            time.sleep(0.5)
        with explain_errors(self.address):
            self._client.stop_job(job_id)

    def stop(self, job_id: str, timeout_s: float) -> Job:
        """Stop a job and wait until it has ended.

        Raises:
            UserError: It has not ended after `timeout_s`.
        """
        self.request_stop(job_id)
        deadline = time.monotonic() + timeout_s
        while not (job := self.job(job_id)).is_over:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Job {job_id} is still {job.status} {timeout_s:g} s after it was asked to stop.",
                    f"It will be killed {STOP_GRACE_S} s after the request; check with: resnet-ops jobs list",
                    WORK_FAILED,
                )
            time.sleep(0.5)
        return job

    def log(self, job_id: str) -> str:
        """Return the job's log so far, its stdout and stderr together."""
        with explain_errors(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, log: "JobLog", on_line: Callable[[str], None], timeout_s: float = 120) -> Job:
        """Call `on_line` with every line of a job's log as it arrives, until the job has ended.

        If the connection breaks, it reconnects and continues where it was. Called again with the same `log`, e.g.
        after a Ctrl-C, it continues too.

        Raises:
            UserError: The server did not respond for `timeout_s`.
        """
        while True:
            try:
                asyncio.run(self._follow(log, on_line))
                job = self.job(log.job_id)
                log.last_contact = time.monotonic()
                if job.is_over:
                    if not job.died:  # its node may be gone, and the log with it
                        log.add(self._read_rest(log), on_line)
                    log.end(on_line)
                    return job
            except UnreachableError as error:
                if time.monotonic() - log.last_contact > timeout_s:
                    raise error.copy_with(
                        cause=f"{error.cause} Job {log.job_id} may still be running.",
                        remedy="Once the cluster is reachable: "
                        f"resnet-ops jobs logs {log.job_id} --cluster {quoted(self.address)}",
                        exit_code=WORK_FAILED,
                    ) from None
            time.sleep(1)

    def _read_rest(self, log: "JobLog") -> str:
        """Return the end of a log that was not received, as connections break silently; '' if it is unavailable."""
        give_up_at = time.monotonic() + LOG_TIMEOUT_S
        while True:
            try:
                return self.log(log.job_id)[log.characters :]
            except UnreachableError:
                if time.monotonic() > give_up_at:
                    return ""
                time.sleep(1)
            except UserError:  # its node is gone
                return ""

    async def _follow(self, log: "JobLog", on_line: Callable[[str], None]) -> None:
        """Read the log from its beginning, skipping what was read before, until the server closes it."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(log.job_id)
        to_skip = log.characters
        while True:
            pending = asyncio.ensure_future(anext(pieces, None))
            # A connection that broke silently never delivers anything, so ask whether the job is still running.
            while not (await asyncio.wait({pending}, timeout=15))[0]:
                if (await asyncio.to_thread(self.job, log.job_id)).is_over:
                    return
                log.last_contact = time.monotonic()
            with explain_errors(self.address):
                piece = pending.result()
            if piece is None:
                return
            new = piece[to_skip:]
            to_skip = max(0, to_skip - len(piece))
            log.add(new, on_line)


class JobLog:
    """Position in a job's log, which the server always sends from the beginning."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.characters = 0
        self.last_contact = time.monotonic()
        self._partial_line = ""

    def add(self, piece: str, on_line: Callable[[str], None]) -> None:
        """Add the next piece, and call `on_line` for each line that is complete."""
        self.characters += len(piece)
        self.last_contact = time.monotonic()
        *lines, self._partial_line = (self._partial_line + piece).split("\n")
        for line in lines:
            on_line(line)

    def end(self, on_line: Callable[[str], None]) -> None:
        """Call `on_line` with the last line, if it did not end with a newline."""
        if self._partial_line:
            on_line(self._partial_line)
            self._partial_line = ""


def new_job_id(run: str) -> str:
    """Return an id for a job of this run."""
    return f"resnet-ops-{run}-{secrets.token_hex(3)}"


def _read_job(details: Any) -> Job:
    code = details.driver_exit_code
    # Ray's JobErrorType, or its name: servers send the one or the other.
    lost = "SUPERVISOR_ACTOR_DIED" in str(details.error_type) or "SUPERVISOR_ACTOR_UNKNOWN" in str(details.error_type)
    status = str(details.status)
    return Job(
        id=details.submission_id,
        run=(details.metadata or {}).get(RUN),
        status=status,
        message=details.message or "",
        entrypoint=details.entrypoint,
        exit_code=code,
        started=_timestamp(details.start_time),
        ended=_timestamp(details.end_time),
        died=status == "FAILED" and (lost if code is None else code not in OWN_EXITS and code not in range(126, 128)),
    )


def _timestamp(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)
