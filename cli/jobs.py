"""`resnet-ops jobs`: lists the jobs submitted to a cluster, shows their logs and stops them."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from resnet_ops.config_base import quoted
from resnet_ops.formatting import text_lines, visible
from resnet_ops.orchestration.job_protocol import parse_milestone

from .config_options import Debug, Json
from .console import Output, ago, err, table
from .help import Command, Group
from .startup import importing

if TYPE_CHECKING:
    from resnet_ops.orchestration.jobs import Job, JobServer

EXAMPLES = """
resnet-ops jobs list --cluster http://head:8265  # running and finished jobs
resnet-ops jobs logs mine  # the newest job of run 'mine', followed while it runs
resnet-ops jobs stop mine  # keeps its checkpoints; resume with train --resume
"""
COLORS = {"SUCCEEDED": "green", "RUNNING": "cyan", "PENDING": "cyan", "STOPPED": "yellow", "FAILED": "red"}

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ray job server, http://HEAD:8265; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS if it is a URL, the "
        "one of `cluster up`, or the one on this machine, which is then sent no token.",
    ),
]
Name = Annotated[str, typer.Argument(help="Job id, or name of a run for its newest job.", metavar="JOB")]

app = typer.Typer(cls=Group, add_completion=False, epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """List, follow and stop jobs on a Ray cluster."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list", cls=Command, epilog=EXAMPLES)
def list_jobs(
    cluster: Cluster = None,
    all_jobs: Annotated[bool, typer.Option("--all", help="Include jobs of other programs.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List jobs, newest first."""
    output = Output(json)
    server = _connect(cluster)
    from resnet_ops.orchestration.jobs import JobList

    jobs = [job for job in server.jobs() if all_jobs or job.run is not None]
    rows = table("job", "run", "status", "started", ">took", "what")
    for column in rows.columns[:-1]:
        column.no_wrap = True  # a truncated id is useless
    rows.columns[-1].overflow = "ellipsis"
    if not output.out.is_terminal:
        output.out.width = 400  # one line for each job in a pipe
    for job in jobs:
        status = f"[{COLORS.get(job.status, 'white')}]{job.status.lower()}[/]"
        rows.add_row(
            escape(job.id),
            escape(job.run or ""),
            status,
            ago(job.started) if job.started else "",
            _duration(job),
            escape(_description(job)),
        )
    submit = f"resnet-ops train --cluster {quoted(server.address)}"
    no_jobs = f"No jobs at {escape(server.address)}. Submit one: {escape(submit)}"
    output.show(rows if jobs else no_jobs)
    output.end(JobList(cluster=server.address, jobs=tuple(jobs)))


@app.command(cls=Command, epilog=EXAMPLES)
def logs(
    name: Name,
    cluster: Cluster = None,
    follow: Annotated[bool, typer.Option(help="Follow the log while the job runs.")] = True,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the log of a job, and follow it while the job runs.

    Ctrl-C stops following; the job continues.
    """
    output = Output(json)
    server = _connect(cluster)
    job = server.find(name)

    def show(line: str) -> None:
        if parse_milestone(line) is None:
            output.out.out(visible(line), highlight=False)

    if follow and not job.is_over:
        from resnet_ops.orchestration.jobs import JobLog

        job = server.follow(JobLog(job.id), show)
    else:
        for line in text_lines(server.log(job.id)):
            show(line)
    err.print(f"Job {escape(job.id)}: {job.status.lower()}", soft_wrap=True)
    output.end(job)


@app.command(cls=Command, epilog=EXAMPLES)
def stop(
    name: Name,
    cluster: Cluster = None,
    timeout: Annotated[float, typer.Option(min=0, metavar="FLOAT", help="Seconds to wait for the job to stop.")] = 90,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop a job as Ctrl-C would, and wait until it has stopped; its checkpoints are kept."""
    output = Output(json)
    server = _connect(cluster)
    job = server.find(name)
    if job.is_over:
        output.show(f"Job {escape(job.id)} had already finished: {job.status.lower()}")
    else:
        with err.status(f"Stopping {escape(job.id)}", spinner="dots"):
            job = server.stop(job.id, timeout)
        output.show(f"Job {escape(job.id)}: {job.status.lower()}")
    output.end(job)


def _connect(cluster: str | None) -> "JobServer":
    with importing():
        from resnet_ops.orchestration.jobs import JobServer
    return JobServer(cluster)


def _duration(job: "Job") -> str:
    if job.started is None:
        return ""
    seconds = int(((job.ended or datetime.now(UTC)) - job.started).total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _description(job: "Job") -> str:
    """Return why a job failed, or what it runs, in at most 60 characters."""
    if job.status == "FAILED":
        code = "" if job.exit_code is None else f"exit code {job.exit_code}: "
        lines = [line for line in job.message.splitlines() if line.strip() and not line.startswith("{")]
        text = code + (lines[-1].strip() if lines else "")
    else:
        text = re.sub(r"^.*-m resnet_ops\.cli\.main ", "", job.entrypoint)
        text = re.sub(r" --(cluster=auto|json)\b", "", text)
    return text if len(text) <= 60 else text[:57] + "..."
