"""The exceptions whose text users read, their exit codes, and the suggestion of what was meant."""

import contextlib
import copy
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

WORK_FAILED = 1
BAD_REQUEST = 2
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: what `Resume with:` names can be run at once
INTERRUPTED = 130
SIMILAR = 0.65  # as difflib measures it: mien is 0.75 of mine, dgo 0.67 of dog, but nope 0.5 of mine


class UserError(ValueError):
    """An error to show to the user: what went wrong and what to do about it, each in a sentence.

    Args:
        cause: What was asked and what is there instead.
        remedy: What the user can do.
        exit_code: `BAD_REQUEST` (the request was wrong), `WORK_FAILED` (the request was
            fine, the work failed), `PREEMPTED` (it can be resumed at once) or `INTERRUPTED`.

    `details` are further keys of the error's JSON object (`--json`).
    """

    def __init__(self, cause: str, remedy: str = "", exit_code: int = BAD_REQUEST) -> None:
        # All three go to super() so that the error survives pickling between processes.
        super().__init__(cause, remedy, exit_code)
        self.cause = cause
        self.remedy = remedy.strip()
        self.exit_code = exit_code
        self.details: dict[str, object] = {}

    def __str__(self) -> str:
        return " ".join(f"{self.cause} {self.remedy}".split())

    def copy_with(self, *, cause: str | None = None, remedy: str | None = None, exit_code: int | None = None) -> Self:
        """Return this error with another text or exit code; its class and other attributes are the same."""
        other = copy.copy(self)
        other.cause = self.cause if cause is None else cause
        other.remedy = self.remedy if remedy is None else remedy.strip()
        other.exit_code = self.exit_code if exit_code is None else exit_code
        other.args = (other.cause, other.remedy, *self.args[2:])
        other.details = dict(self.details)
        return other


class PausedError(UserError):
    """An interruption by an outside cause, such as a full disk; the work can be resumed once that is gone."""


class RunHeldError(UserError):
    """A refusal: another process holds the run."""


class RunLostError(UserError):
    """A loss: the run that this process wrote to is another's now, or gone."""


def did_you_mean_path(path: Path) -> str:
    """Return 'Did you mean X?' for the existing path most like one that does not exist, or '' when none is like it."""
    with contextlib.suppress(OSError):
        for missing in reversed((path, *path.parents)):
            if not missing.exists():
                rest, siblings = path.relative_to(missing), [each.name for each in missing.parent.iterdir()]
                near = difflib.get_close_matches(missing.name, siblings, n=1, cutoff=SIMILAR)
                meant = missing.with_name(near[0]) / rest if near else path
                return f"Did you mean {meant}?" if near and meant.exists() else ""
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return 'Did you mean X?' for the known name nearest to `name`, or '' when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=SIMILAR)
    return f"Did you mean {near[0]}?" if near else ""
