"""What the pictures of a search show: its trials, what their epochs measured, and what follows from both in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.records import Epoch, RunRecord
from resnet_ops.significance import differs, standard_error
from resnet_ops.tuning.results import Search, SearchRecord, Selection, Trial, TrialStatus, select

KINDS = {"plain": "plain", "resnet": "residual"}  # in the order of panels


NETWORK = ("model", "family", "depth", "lr")  # which have pictures of their own


@dataclass(frozen=True)
class SearchData:
    """All there is of a search at some moment; `curves` are the epochs of each trial, by its id."""

    record: SearchRecord
    trials: list[Trial]
    curves: dict[int, list[Epoch]]
    answer: Selection | None
    best_run: RunRecord | None  # of the answer's trial

    @classmethod
    def read(cls, search: Search) -> "SearchData":
        """Read it.

        Raises:
            UserError: There is no search, or a file of it is damaged.
        """
        record, trials = search.read(), search.trials()
        best = select(trials, record.data.val_images)
        best_run = None
        if best is not None:
            try:
                best_run = search.trial_run(best.trial).read_as_written()
            except UserError:  # it has just begun; the rest is there to be shown
                best_run = None
        curves = {trial.id: search.trial_run(trial).epochs() for trial in trials}
        return cls(record, trials, curves, best, best_run)

    @property
    def images(self) -> int:
        """Validation images."""
        return self.record.data.val_images

    @cached_property
    def scored(self) -> list[Trial]:
        """Trials that have validated, the best last."""
        return sorted((t for t in self.trials if t.val_accuracy is not None), key=lambda t: (-error(t), -t.id))

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of network that were trained."""
        return [kind for kind in KINDS if any(kind_of(t) == kind for t in self.trials)]

    @cached_property
    def depths(self) -> list[int]:
        """The depths that were trained, rising."""
        return sorted({trial.depth for trial in self.trials})

    @cached_property
    def others(self) -> dict[str, list[Any]]:
        """Options that were searched besides network and learning rate, and the values of each that were tried."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.options if name not in NETWORK)
        tried = {name: [t.options[name] for t in self.trials if name in t.options] for name in names}
        return {name: values for name, values in tried.items() if len(set(map(repr, values))) > 1}

    def best_of(self, kind: str, depth: int) -> Trial | None:
        """The best trial of a depth, a failed one only where there is no other, as for the answer."""
        of_depth = [trial for trial in self.scored if kind_of(trial) == kind and trial.depth == depth]
        return max(of_depth, key=lambda t: (t.status != "failed", -error(t), -t.id), default=None)

    def bests(self, kind: str) -> list[Trial]:
        """The best trial of each depth, the shallowest first."""
        return [best for depth in self.depths if (best := self.best_of(kind, depth))]

    def with_status(self, status: TrialStatus) -> list[Trial]:
        """The trials that are so."""
        return [trial for trial in self.trials if trial.status == status]


def kind_of(trial: Trial) -> str:
    """'plain' or 'resnet'."""
    return "plain" if trial.model.startswith("plain") else "resnet"


def error(trial: Trial) -> float:
    """The best epoch's top-1 error of a trial that has validated."""
    assert trial.val_accuracy is not None
    return 1 - trial.val_accuracy


def deviation(trial: Trial, images: int) -> float:
    """One standard error of it."""
    return standard_error(1 - error(trial), images)


def verdict(kind: str, bests: Sequence[Trial], images: int) -> str:
    """Whether deeper was better, in a sentence that says no more than the numbers do.

    Two depths differ where their best errors are further apart than one standard error of the difference.

    Args:
        kind: Of the networks.
        bests: The best trial of each depth, the shallowest first.
        images: For validation.
    """
    name = KINDS[kind].capitalize() + " networks"
    if len(bests) < 2:
        return ""

    def differ(a: Trial, b: Trial) -> bool:
        return differs(error(a), error(b), images)

    first, last = bests[0], bests[-1]
    best = min(bests, key=lambda trial: (error(trial), trial.depth))
    if last is not best and differ(last, best):
        return f"{name}: the deepest is not the best: {_at(last)}, {_at(best)}."
    if not differ(first, best):
        return f"{name}: no difference beyond one standard error from depth {first.depth} to {last.depth}."
    enough = next(trial for trial in bests if not differ(trial, best))
    if enough is last:
        return f"{name}: the deepest is the best: {_at(first)}, {_at(last)}."
    return (
        f"{name}: deeper is better up to depth {enough.depth}: {_at(first)}, {_at(enough)}; beyond that there is no "
        "difference beyond one standard error."
    )


def _at(trial: Trial) -> str:
    return f"{percent(error(trial))} error at depth {trial.depth}"
