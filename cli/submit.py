"""`resnet-ops train --cluster http://...`: a job on a cluster, followed from here.

The job's output is shown as it comes. Ctrl-C asks whether to leave the job or to stop it.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from rich.markup import escape

from resnet_ops.config import DATA_SETS, TrainConfig
from resnet_ops.errors import INTERRUPTED, WORK_FAILED, UserError
from resnet_ops.formatting import percent
from resnet_ops.options import RUN_NAME, as_typed
from resnet_ops.orchestration.job_protocol import SUBMITTER, parse_milestone, report_milestone
from resnet_ops.tracking.tracker import settings

from .console import Output, err
from .startup import importing

if TYPE_CHECKING:
    from resnet_ops.orchestration.jobs import Job, JobServer


Arguments = Callable[[TrainConfig, bool], list[str]]


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: nobody is there to be asked."""


def submit(
    config: TrainConfig, resume: str | None, arguments: Arguments, output: Output, command: str = "train"
) -> None:
    """Train, or search, on the cluster whose job server `config.cluster` names, and show it here.

    Args:
        config: What to train; of a run to resume only where it lies and where it runs.
        resume: Name of the run to go on with.
        arguments: What to type there, given the name of the run and whether to resume it.
        output: Where the result goes.
        command: "train", "tune" or "study ...".

    Raises:
        UserError: The request was wrong, the cluster cannot be reached, or the work failed or
            was interrupted.
    """
    _check_places(config)
    environment = settings(config.track)
    config = config.model_copy(update={"name": resume or config.name or _new_name(config)})
    with importing():
        from resnet_ops.orchestration.jobs import JobServer, SubmittedResult
    server = JobServer(config.cluster or "")
    attempt = _Attempt(server, config, resume is not None, arguments, command, environment)
    started_at = time.monotonic()
    try:
        job = attempt.follow()
        for _ in range(config.max_failures):
            if not job.died:
                break
            job = attempt.follow_again(job)
        result = _result(attempt, job)
    except UserError as error:
        error.details.update({"name": config.name, "job_id": attempt.job_id})
        raise
    best = result.get("best") or {}
    accuracy = f": {percent(best['val_accuracy'])} validation accuracy" if best.get("val_accuracy") else ""
    output.show(f"Job {escape(job.id)} succeeded in {time.monotonic() - started_at:.0f} s{accuracy}")
    output.end(SubmittedResult(**{**result, "job_id": job.id}))


class _Attempt:
    """A job that is submitted, followed, and submitted again where its driver is lost."""

    def __init__(
        self,
        server: "JobServer",
        config: TrainConfig,
        resume: bool,
        arguments: Arguments,
        command: str,
        environment: dict[str, str],
    ) -> None:
        self.server, self.config, self.resume, self.arguments = server, config, resume, arguments
        self.command, self.environment = command, environment
        self.job_id = ""
        self.stopping = False
        self.said: dict[str, Any] | None = None
        self._ending = False
        self._held: list[str] = []

    def follow(self) -> "Job":
        """Submit the job and show its log, until it has ended."""
        from resnet_ops.orchestration.jobs import JobLog, new_job_id

        self.job_id, self.said, self._ending = new_job_id(str(self.config.name)), None, False
        arguments = self.arguments(self.config, self.resume)
        log, submitted, asked = JobLog(self.job_id), False, False
        with _sigterm():
            while True:
                try:
                    if not submitted:
                        self.server.submit(self.job_id, arguments, str(self.config.name), self.environment)
                        submitted = True
                        err.print(
                            f"[bold]job {escape(self.job_id)}[/] at {escape(self.server.address)}", soft_wrap=True
                        )
                    if self.stopping and not asked:
                        self.server.request_stop(self.job_id)
                        asked = True
                    job = self.server.follow(log, self._show)
                    self._let_go()
                    return job
                except KeyboardInterrupt as interrupt:
                    if not submitted:
                        cause = f"Interrupted while job {self.job_id} was being submitted."
                        raise UserError(cause, "Check whether it exists: resnet-ops jobs list", INTERRUPTED) from None
                    self._interrupted(interrupt)

    def follow_again(self, lost: "Job") -> "Job":
        """Submit once more, from the last checkpoint if there is a run by now."""
        how = "its supervisor was lost" if lost.exit_code is None else f"its driver exited with code {lost.exit_code}"
        then = f"resuming {self.config.name}" if self.resume else "resubmitting it"
        err.print(f"[yellow]note:[/] Job {escape(lost.id)} died ({how}); {escape(then)}.", soft_wrap=True)
        return self.follow()

    def _show(self, line: str) -> None:
        """Show one line, but for the JSON at the end and the error before it, which are told in our own words."""
        # Ray's own, and long; it writes them into the same log, with nothing but their words to tell them by.
        if line.startswith("Running entrypoint for job ") or line.endswith("Runtime env is setting up."):
            return
        if (reached := parse_milestone(line)) is not None:
            self.resume = self.resume or reached == "created"
            self._ending = reached == "ending"
            return
        if line.startswith("{") and (said := _said(line)) is not None:
            self.said = said
            self._held.clear()
            return
        if self._ending:
            self._held.append(line)
        else:
            _write(line)

    def _let_go(self) -> None:
        for line in self._held:
            _write(line)
        self._held.clear()

    def _interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """Leave the job (raises) or have it stopped (returns, to see it end)."""
        if not self.stopping and not isinstance(interrupt, TerminatedError) and _wants_it_stopped():
            self.stopping = True
            err.print("Stopping; press Ctrl-C again to detach.")
            return
        where = f"{self.job_id} --cluster {self.server.address}"
        raise UserError(
            f"Detached; job {self.job_id} {'is stopping' if self.stopping else 'keeps running'}.",
            f"Follow it: resnet-ops jobs logs {where}; stop it: resnet-ops jobs stop {where}",
            INTERRUPTED,
        ) from None


def _result(attempt: _Attempt, job: "Job") -> dict[str, Any]:
    """What a job that succeeded has said last.

    Raises:
        UserError: It did not succeed.
    """
    said, config = attempt.said or {}, attempt.config
    if job.status == "SUCCEEDED":
        if not said:
            see = escape(f"resnet-ops jobs logs {job.id} --cluster {config.cluster}")
            err.print(f"[yellow]note:[/] The end of the job's log could not be read; see: {see}", soft_wrap=True)
        return said or {"name": config.name, "status": "finished"}
    where = f"--runs-dir {as_typed(config.runs_dir)} --cluster {config.cluster}"
    go_on = f"resnet-ops {attempt.command} --resume {config.name} {where}"
    if job.status == "STOPPED":
        cause = said.get("error") or f"Job {job.id} was stopped."
        raise UserError(cause, f"Resume with: {go_on}" if attempt.resume else "", INTERRUPTED)
    if job.died:
        again = "" if not config.max_failures else f", as did {config.max_failures} more after it"
        raise UserError(f"Job {job.id} died: {_last_line(job.message)}{again}.", f"Resume with: {go_on}", WORK_FAILED)
    if "error" in said:
        raise UserError(said["error"], said.get("remedy", ""), job.exit_code or WORK_FAILED)
    raise UserError(f"Job {job.id} failed: {_last_line(job.message)}.", _remedy(job), WORK_FAILED)


def _remedy(job: "Job") -> str:
    # Python's words: of a process that could not import us there is nothing else.
    missing = re.findall(r"No module named '([\w.]+)'", job.message)
    if missing:
        return f"Install {missing[-1].split('.')[0]} on the cluster; pip install resnet-ops installs all dependencies."
    if job.exit_code == 127:
        return "The cluster was started without 'python' on its PATH; start it from its environment."
    return f"See its log: resnet-ops jobs logs {job.id}"


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1].strip().rstrip(".")[:300] if lines else "no reason was given"


def _said(line: str) -> dict[str, Any] | None:
    """The JSON object of `train --json`, if this line is one."""
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        if isinstance(said, dict) and ("run_dir" in said or "exit_code" in said):
            return said
    return None


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _wants_it_stopped() -> bool:
    """Ask, where somebody can answer; a second Ctrl-C is an answer too."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write("\nDetach (the job keeps running) or stop it? [d/s] (d) ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in ("s", "stop")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return False


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    def terminate(*_: object) -> NoReturn:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_places(config: TrainConfig) -> None:
    """Paths are the cluster's: it cannot see the directory that a relative one is meant from."""
    places = {
        option: as_typed(place)
        for option, place in (
            ("--runs-dir", config.runs_dir),
            ("--data", config.data if config.data not in DATA_SETS else None),
            ("--val-data", config.val_data),
            ("--data-root", config.data_root),
            ("--cache-dir", config.cache_dir),
        )
        if place is not None
    }
    for option, place in places.items():
        if "://" in place and urlsplit(place).username is not None:
            raise UserError(
                f"{option} contains a user name or a secret, which would be visible to everyone on the cluster.",
                "Remove it; give the nodes access through their environment or role.",
            )
        # But for runs, `~` is the home directory on the machine that reads it.
        if "://" not in place and not place.startswith("/" if option == "--runs-dir" else ("/", "~")):
            raise UserError(
                f"{option} must be a path that every node of the cluster sees; {place!r} is relative.",
                f"Use an absolute path or a URL, such as {option} /shared/{Path(place).name}.",
            )


def _new_name(config: TrainConfig) -> str:
    """A run needs a name before it is submitted, to be found again if its job is lost."""
    data = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.data).stem).strip("-")[:40] or "images"
    stem = f"{config.model}-{data}"
    return f"{stem if RUN_NAME.fullmatch(stem) else 'run'}-{secrets.token_hex(3)}"


def begin_as_job() -> None:
    """On the cluster: take Ctrl-C as usual, and say what differs from where the job was submitted."""
    # A head node that was started in the background ignores it, and what it starts inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from resnet_ops.orchestration.job_protocol import installed_versions, version_differences

    report_milestone("begun")
    found = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    err.print(f"resnet-ops has begun on {escape(socket.gethostname())}: {found}", soft_wrap=True)
    differing = version_differences(os.environ.get(SUBMITTER, ""))
    if differing:
        err.print(f"[yellow]note:[/] This cluster has {escape(', '.join(differing))}.", soft_wrap=True)
