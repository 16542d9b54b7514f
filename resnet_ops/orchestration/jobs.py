"""Jobs of resnet-ops on a Ray cluster: submit one, follow its log to the end, list and stop them.

How the job server is reached is in `jobserver`; what people see of it, in the command line.
"""

import asyncio
import platform
import secrets
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

import resnet_ops
from resnet_ops.errors import WORK_FAILED, UserError, did_you_mean
from resnet_ops.orchestration.job_client import UnreachableError, connect, explain_errors
from resnet_ops.orchestration.job_protocol import SUBMITTER, parse_milestone
from resnet_ops.orchestration.packaging import copy_package
from resnet_ops.orchestration.ray_internals import server_version
from resnet_ops.results import Moment, Result

OLDEST_RAY = (2, 60)  # what the shipped code is written for
STOP_GRACE_S = 60  # from the signal to SIGKILL: for a step, and a checkpoint on a slow disk
BEGINS_WITHIN_S = 60
REST_S = 30.0  # to wait for the end of a log where the server is there and the log is not
RUN, VERSION = "resnet_ops_run", "resnet_ops_version"  # keys of a job's metadata
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
# A driver that ends by itself does so with one of these; any other was killed, by a signal or with its machine.
OWN_EXITS = {0, 1, 2, 130}


class Job(Result):
    """One job as the server knows it."""

    id: str = Field(serialization_alias="job_id", description="Its id; in JSON `job_id`.")
    run: str | None = Field(description="Name of its run; null where it is not one of resnet-ops.")
    status: str = Field(description="PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.")
    exit_code: int | None = Field(description="Of the command, once it has ended.")
    started: Moment | None
    ended: Moment | None
    entrypoint: str = Field(description="Its command line.")
    message: str = Field(description="What Ray says of its status.")
    died: bool = Field(
        exclude=True, description="Whether its driver or supervisor was lost, which says nothing about the work itself."
    )

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED


class JobList(Result):
    """The jobs of a cluster."""

    cluster: str = Field(description="URL of the job server.")
    jobs: tuple[Job, ...] = Field(description="The newest first.")


class SubmittedResult(Result):
    """What a command that ran as a job has printed with `--json`, and the job's id."""

    model_config = ConfigDict(extra="allow")

    job_id: str


class JobServer:
    """A cluster's job server, connected.

    Raises:
        UserError: It cannot be reached, or refuses; so does every method, any time.
    """

    def __init__(self, address: str) -> None:
        self._client = connect(address)
        self.address: str = self._client.get_address()

    def submit(self, job_id: str, arguments: list[str], run: str, environment: dict[str, str] | None = None) -> None:
        """Submit `resnet-ops` with these arguments, run by the code in hand, in the cluster's environment and this."""
        self._check_version()
        with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder, explain_errors(self.address):
            self._client.submit_job(
                # exec: or a shell would stand between the signals and the command. The safe path: or a
                # resnet_ops/ in the directory that the cluster was started in would go before what is shipped.
                entrypoint=f"PYTHONSAFEPATH=1 exec python -m resnet_ops.cli.main {shlex.join(arguments)}",
                submission_id=job_id,
                metadata={RUN: run, VERSION: resnet_ops.__version__},
                runtime_env={
                    "py_modules": [str(copy_package(Path(folder)))],
                    "env_vars": (environment or {})
                    | {
                        # Read by the job's supervisor (2.60). A driver that joined Ray dies of SIGTERM at once.
                        "RAY_JOB_STOP_SIGNAL": "SIGINT",
                        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
                        SUBMITTER: ",".join(f"{name}={version}" for name, version in versions().items()),
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
        """All jobs that were submitted to the cluster, the newest first."""
        with explain_errors(self.address):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or datetime.max.replace(tzinfo=UTC), reverse=True)

    def job(self, job_id: str) -> Job:
        """What became of a job."""
        with explain_errors(self.address):
            return _job(self._client.get_job_info(job_id))

    def find(self, name: str) -> Job:
        """The job with this id, or the newest one of the run of this name.

        Raises:
            UserError: There is none; names the nearest.
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
        """Have the job interrupted; it saves what it has and ends some seconds later.

        Ray sends the signal once. A command that is just being started does not get it where the
        head node was started with SIGINT ignored, as shells do in the background, and would run on
        to its end: so this waits until ours has said that it has begun.
        """
        deadline = time.monotonic() + BEGINS_WITHIN_S
        while time.monotonic() < deadline and not (job := self.job(job_id)).is_over:
            if job.run is None or "begun" in map(parse_milestone, self.log(job_id).splitlines()):
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
        """The job's log so far: its stdout and stderr, in one."""
        with explain_errors(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, log: "JobLog", on_line: Callable[[str], None], patience_s: float = 120) -> Job:
        """Give every line of a job's log to `on_line` as it comes, until the job has ended.

        A connection that breaks is made anew, and the log goes on where it was. Called again
        with the same `log`, e.g. after a Ctrl-C, this goes on too.

        Raises:
            UserError: The server did not answer for `patience_s`.
        """
        while True:
            try:
                asyncio.run(self._follow(log, on_line))
                job = self.job(log.job_id)
                log.heard_at = time.monotonic()
                if job.is_over:
                    if not job.died:  # the machine may be gone: one would wait, for nothing
                        log.add(self._rest(log), on_line)
                    log.end(on_line)
                    return job
            except UnreachableError as error:
                if time.monotonic() - log.heard_at > patience_s:
                    raise error.copy_with(
                        cause=f"{error.cause} Job {log.job_id} may still be running.",
                        remedy=f"Once the cluster is reachable: resnet-ops jobs logs {log.job_id} --cluster {self.address}",
                        exit_code=WORK_FAILED,
                    ) from None
            time.sleep(1)

    def _rest(self, log: "JobLog") -> str:
        """What a job that has ended wrote and was not sent, for a connection breaks without a word; or nothing."""
        give_up_at = time.monotonic() + REST_S
        while True:
            try:
                return self.log(log.job_id)[log.characters :]
            except UnreachableError:
                if time.monotonic() > give_up_at:
                    return ""
                time.sleep(1)
            except UserError:  # the machine that has it is gone
                return ""

    async def _follow(self, log: "JobLog", on_line: Callable[[str], None]) -> None:
        """Read the log from its beginning, passing over what is known, until the server closes it."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(log.job_id)
        known = log.characters
        while True:
            coming = asyncio.ensure_future(anext(pieces, None))
            # A connection that is cut without a word stays silent for ever, so the silence is questioned.
            while not (await asyncio.wait({coming}, timeout=15))[0]:
                if (await asyncio.to_thread(self.job, log.job_id)).is_over:
                    return
                log.heard_at = time.monotonic()
            with explain_errors(self.address):
                piece = coming.result()
            if piece is None:
                return
            new = piece[known:]
            known = max(0, known - len(piece))
            log.add(new, on_line)


class JobLog:
    """How much of a job's log has been read. The server always sends it from the beginning."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.characters = 0
        self.heard_at = time.monotonic()
        self._rest = ""  # a line that has not ended yet

    def add(self, piece: str, on_line: Callable[[str], None]) -> None:
        """Take in the next piece."""
        self.characters += len(piece)
        self.heard_at = time.monotonic()
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            on_line(line)

    def end(self, on_line: Callable[[str], None]) -> None:
        """Nothing more comes."""
        if self._rest:
            on_line(self._rest)
            self._rest = ""


def new_job_id(run: str) -> str:
    """An id for a job of this run."""
    return f"resnet-ops-{run}-{secrets.token_hex(3)}"


def versions() -> dict[str, str]:
    """What has to agree where a job is submitted and where it runs."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name, distribution in {"Ray": "ray", "torch": "torch"}.items():
        try:
            found[name] = metadata.version(distribution).split("+")[0]  # built for CPU or CUDA: no matter
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def version_differences(submitter: str) -> list[str]:
    """In what the versions here differ from the submitter's, as the job received them."""
    theirs = dict(pair.split("=", 1) for pair in submitter.split(",") if "=" in pair)
    return [
        f"{name} {version} (submitted from {theirs[name]})"
        for name, version in versions().items()
        if name in theirs and theirs[name] != version
    ]


def _job(details: Any) -> Job:
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
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        died=status == "FAILED" and (lost if code is None else code not in OWN_EXITS and code not in range(126, 128)),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)
