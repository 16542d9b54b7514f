"""Jobs of `--cluster http://...`: submitted and followed; job_arguments.py makes their commands.

The job's log is shown as it is written. Ctrl-C asks whether to detach or to stop the job.
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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.markup import escape

from resnet_ops.class_metrics import SELECT_NAMES
from resnet_ops.config import AUTO, DATA_SETS, HUB, TEST_NAME, Select, TrainConfig
from resnet_ops.config_base import RUN_NAME, as_typed, quoted
from resnet_ops.errors import INTERRUPTED, PREEMPTED, WORK_FAILED, UserError
from resnet_ops.formatting import percent, visible
from resnet_ops.orchestration.job_protocol import SUBMITTER, parse_milestone, report_milestone
from resnet_ops.orchestration.job_supervision import Supervision, supervise
from resnet_ops.stop_request import stop_of
from resnet_ops.tracking.tracker import service_environment

from .console import Output, err, warn
from .startup import importing

if TYPE_CHECKING:
    from resnet_ops.orchestration.jobs import Job, JobServer


Arguments = Callable[[TrainConfig, bool], list[str]]


def submit(
    config: TrainConfig, resume: str | None, arguments: Arguments, output: Output, command: str = "train"
) -> None:
    """Run a command as a job on the cluster whose job server is `config.cluster`, and show its log and result.

    Args:
        config: The configuration; of a run to resume only its folder and where to run it.
        resume: Name of the run to resume.
        arguments: Returns the arguments of the job, given the configuration and whether to resume.
        output: The output of the result.
        command: "train", "tune" or "study ...".

    Raises:
        UserError: The request was wrong, the cluster cannot be reached, or the work failed or
            was interrupted.
    """
    _check_places(config)
    environment = service_environment(config.track)
    config = config.model_copy(update={"name": resume or config.name or _new_name(config)})
    with importing():
        from resnet_ops.orchestration.jobs import JobServer, SubmittedResult
    server = JobServer(config.cluster or "")
    submission = _Submission(server, config, resume is not None, arguments, command, environment)
    started_at = time.monotonic()
    try:
        job = submission.follow()
        result = _result(submission, job)
    except UserError as error:
        error.details.update({"name": config.name, "job_id": submission.job_id})
        raise
    best = result.get("best") or {}
    accuracy = ""
    if best.get("val_accuracy"):
        select: Select = best.get("selected_by") or "top1"
        by = "" if select == "top1" else f" by {SELECT_NAMES[select]}"
        accuracy = f": {percent(best['val_accuracy'])} validation accuracy, chosen{by} on these images"
    elif result.get("fit_all"):
        accuracy = ", fitted on all images"
    if best.get("test_accuracy"):
        accuracy += f"; {percent(best['test_accuracy'])} test accuracy"
    output.show(f"Job {escape(job.id)} succeeded in {time.monotonic() - started_at:.0f} s{accuracy}")
    output.end(SubmittedResult(**{**result, "job_id": job.id}))


class _Submission:
    """A job that is submitted and followed."""

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
        self.answer: dict[str, Any] | None = None  # the JSON object that the job printed last
        self._ending = False
        self._held_back: list[str] = []  # lines after the work has ended, shown unless the JSON object comes

    def follow(self) -> "Job":
        """Submit the job and show its log, until it has ended."""
        from resnet_ops.orchestration.jobs import JobLog, new_job_id

        self.job_id = new_job_id(str(self.config.name))
        arguments = self.arguments(self.config, self.resume)
        supervision = Supervision(self.config.max_failures, self.arguments(self.config, True), self.resume)
        environment = self.environment | supervision.to_environment()
        log, submitted, stop_requested = JobLog(self.job_id), False, False
        while True:
            try:
                if not submitted:
                    self.server.submit(self.job_id, arguments, str(self.config.name), environment)
                    submitted = True
                    err.print(f"[bold]job {escape(self.job_id)}[/] at {escape(self.server.address)}", soft_wrap=True)
                if self.stopping and not stop_requested:
                    self.server.request_stop(self.job_id)
                    stop_requested = True
                job = self.server.follow(log, self._show)
                self._show_held_back()
                return job
            except KeyboardInterrupt as interrupt:
                if not submitted:
                    cause = f"Interrupted while job {self.job_id} was being submitted."
                    raise UserError(cause, "Check whether it exists: resnet-ops jobs list", INTERRUPTED) from None
                self._interrupted(interrupt)

    def _show(self, line: str) -> None:
        """Show one line, except the JSON object at the end and the error before it, which are shown as our own."""
        # Ray's own messages, in the same log and only recognizable by their text.
        if line.startswith("Running entrypoint for job ") or line.endswith("Runtime env is setting up."):
            return
        if (reached := parse_milestone(line)) is not None:
            self.resume = self.resume or reached == "created"
            self._ending = reached == "ending"
            if reached == "begun":  # perhaps again, after the loss of a driver
                self._show_held_back()
            return
        if line.startswith("{") and (answer := _parse_answer(line)) is not None:
            self.answer = answer
            self._held_back.clear()
            return
        if self._ending:
            self._held_back.append(line)
        else:
            _write(line)

    def _show_held_back(self) -> None:
        for line in self._held_back:
            _write(line)
        self._held_back.clear()

    def _interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """Detach from the job (raises) or mark it to be stopped (returns, to follow its end)."""
        if not self.stopping and not stop_of(interrupt).preempted and _ask_whether_to_stop():
            self.stopping = True
            err.print("Stopping; press Ctrl-C again to detach.")
            return
        job = f"{self.job_id} --cluster {quoted(self.server.address)}"
        raise UserError(
            f"Detached; job {self.job_id} {'is stopping' if self.stopping else 'keeps running'}.",
            f"Follow it: resnet-ops jobs logs {job}; stop it: resnet-ops jobs stop {job}",
            INTERRUPTED,
        ) from None


def _result(submission: _Submission, job: "Job") -> dict[str, Any]:
    """Return the JSON object of a job that succeeded.

    Raises:
        UserError: It did not succeed.
    """
    answer, config = submission.answer or {}, submission.config
    if job.status == "SUCCEEDED":
        if not answer:
            logs = f"resnet-ops jobs logs {job.id} --cluster {quoted(config.cluster)}"
            warn(f"The end of the job's log could not be read; see: {logs}")
        return answer or {"name": config.name, "status": "finished"}
    places = f"--runs-dir {quoted(config.runs_dir)} --cluster {quoted(config.cluster)}"
    resume = f"resnet-ops {submission.command} --resume {config.name} {places}"
    if job.status == "STOPPED":
        cause = answer.get("error") or f"Job {job.id} was stopped."
        raise UserError(cause, f"Resume with: {resume}" if submission.resume else "", INTERRUPTED)
    if job.died:
        if job.exit_code is None or job.exit_code < 0:  # a driver's own signal is above 128
            cause, code = f"Job {job.id} was lost with its supervisor: {_last_line(job.message)}.", PREEMPTED
        else:
            again = "" if not config.max_failures else f", as were {config.max_failures} before it"
            cause, code = f"The driver of job {job.id} was killed{again}.", WORK_FAILED
        raise UserError(cause, f"Resume with: {resume}" if submission.resume else "", code)
    if "error" in answer:
        raise UserError(answer["error"], answer.get("remedy", ""), job.exit_code or WORK_FAILED)
    raise UserError(f"Job {job.id} failed: {_last_line(job.message)}.", _remedy(job), WORK_FAILED)


def _remedy(job: "Job") -> str:
    # Python's text: a process that cannot import resnet_ops gives nothing else.
    missing = re.findall(r"No module named '([\w.]+)'", job.message)
    if missing:
        return f"Install {missing[-1].split('.')[0]} on the cluster; pip install resnet-ops installs all dependencies."
    if job.exit_code == 127:
        return "The cluster was started without 'python' on its PATH; start it from its environment."
    return f"See its log: resnet-ops jobs logs {job.id}"


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1].strip().rstrip(".")[:300] if lines else "no reason was given"


def _parse_answer(line: str) -> dict[str, Any] | None:
    """Return the JSON object of `train --json`, if this line is one."""
    with contextlib.suppress(ValueError):
        answer = json.loads(line)
        if isinstance(answer, dict) and ("run_dir" in answer or "exit_code" in answer):
            return answer
    return None


def _write(line: str) -> None:
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()


def _ask_whether_to_stop() -> bool:
    """Ask on a terminal whether to stop the job; without one, or after a second Ctrl-C, detach."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write("\nDetach (the job keeps running) or stop it? [d/s] (d) ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in ("s", "stop")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return False


def _check_places(config: TrainConfig) -> None:
    """Check that paths are absolute and without secrets: they are read on the nodes of the cluster."""
    places = {
        option: as_typed(place)
        for option, place in (
            ("--runs-dir", config.runs_dir),
            ("--data", config.data if config.data not in DATA_SETS else None),
            ("--val-data", config.val_data if config.val_data != TEST_NAME else None),
            ("--data-root", config.data_root),
            ("--cache-dir", config.cache_dir),
            ("--weights", config.weights if _is_place(config.weights) else None),
        )
        if place is not None
    }
    for option, place in places.items():
        if "://" in place and urlsplit(place).username is not None:
            raise UserError(
                f"{option} contains a user name or a secret, which would be visible to everyone on the cluster.",
                "Remove it; give the nodes access through their environment or role.",
            )
        # Except in --runs-dir, `~` is the home directory on the machine that reads it.
        if "://" not in place and not place.startswith("/" if option == "--runs-dir" else ("/", "~")):
            raise UserError(
                f"{option} must be a path that every node of the cluster sees; {place!r} is relative.",
                f"Use an absolute path or a URL, such as {option} /shared/{Path(place).name}.",
            )


def _is_place(weights: str | None) -> bool:
    """Return whether weights are a file or a folder: not those of torchvision, the Hub or a named run."""
    if weights is None or weights.startswith(HUB):
        return False
    return "/" in weights or Path(weights).is_file()


def _new_name(config: TrainConfig) -> str:
    """Return a name for a run, which it needs before it is submitted, to be resumed if its job is lost."""
    data = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.data).stem).strip("-")[:40] or "images"
    stem = data if config.model == AUTO else f"{config.model}-{data}"
    return f"{stem if RUN_NAME.fullmatch(stem) else 'run'}-{secrets.token_hex(3)}"


def begin_as_job() -> None:
    """Prepare a job's process: supervise its driver, and show how versions differ from the submitter's."""
    # A head node that was started in the background ignores SIGINT, and so do the processes it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if supervision := Supervision.take_from_environment():
        supervise(supervision)
    from resnet_ops.orchestration.job_protocol import installed_versions, version_differences

    report_milestone("begun")
    installed = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    err.print(f"resnet-ops started on {escape(socket.gethostname())}: {installed}", soft_wrap=True)
    differing = version_differences(os.environ.get(SUBMITTER, ""))
    if differing:
        warn(f"This cluster has {', '.join(differing)}.")
