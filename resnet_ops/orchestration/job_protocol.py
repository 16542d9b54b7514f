"""Messages between a submitted job and its submitter: milestones in the job's log, versions in its environment.

The client that submits jobs is in `jobs`; a job that reports to it does not need it.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Literal

SUBMITTER = "RESNET_OPS_SUBMITTER"  # environment variable of a job: the versions that it was submitted with
KEY = "resnet_ops_milestone"  # of a line of JSON in the log, among those for people
# The command runs; its run exists and can be resumed; only the result, as JSON, is still to come.
Milestone = Literal["begun", "created", "ending"]
on_created: Callable[[], None] | None = None  # tells the job's supervisor, whose child this process is


def report_milestone(milestone: Milestone) -> None:
    """Report a milestone to the submitter, if this process runs as a submitted job."""
    if SUBMITTER in os.environ:
        sys.stderr.write(json.dumps({KEY: milestone}) + "\n")
        sys.stderr.flush()
    if milestone == "created" and on_created is not None:
        on_created()


def parse_milestone(line: str) -> Milestone | None:
    """Return the milestone that a line of a job's log reports, or None if it is another line."""
    try:
        record = json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return None
    milestone: Milestone | None = record.get(KEY)
    return milestone


def installed_versions() -> dict[str, str]:
    """Return the versions that should be the same where a job is submitted and where it runs."""
    versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name, distribution in {"Ray": "ray", "torch": "torch"}.items():
        try:
            versions[name] = metadata.version(distribution).split("+")[0]  # without +cpu or +cu126
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def version_differences(submitter: str) -> list[str]:
    """Return a phrase for each version here that differs from the submitter's, as the job received them."""
    submitted = dict(pair.split("=", 1) for pair in submitter.split(",") if "=" in pair)
    return [
        f"{name} {version} (submitted from {submitted[name]})"
        for name, version in installed_versions().items()
        if name in submitted and submitted[name] != version
    ]
