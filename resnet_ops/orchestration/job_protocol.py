"""How a job's command tells who submitted it where it stands: lines of JSON in its log, among those for people.

Apart from `jobs`, for a command writes them without the client that reads them.
"""

import json
import os
import sys
from typing import Literal

SUBMITTER = "RESNET_OPS_SUBMITTER"  # set for a job: versions where it was submitted, for it to compare
KEY = "resnet_ops_milestone"
# The command runs; its run is there, and can be resumed; what follows is also in the object that it ends with.
Milestone = Literal["begun", "created", "ending"]


def report_milestone(reached: Milestone) -> None:
    """Write a line for who submitted this process's job; nothing where it is none."""
    if SUBMITTER in os.environ:
        sys.stderr.write(json.dumps({KEY: reached}) + "\n")
        sys.stderr.flush()


def parse_milestone(line: str) -> Milestone | None:
    """Return the milestone that a line of a log tells of, or None where the line is another."""
    try:
        told = json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return None
    reached: Milestone | None = told.get(KEY)
    return reached
