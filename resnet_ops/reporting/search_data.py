"""The data of a search that its report shows: trials, their epochs, and a verdict on depth. Drawing is not here."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from resnet_ops import files
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.significance import PairwiseTests, wilson_interval
from resnet_ops.tuning.results import Search, SearchRecord, SelectedTrial, Trial, TrialStatus, select_trial

KINDS = {"plain": "plain", "resnet": "residual"}  # in the order of panels
NETWORK = ("model", "family", "depth", "lr")  # options with pictures of their own


@dataclass(frozen=True)
class SearchData:
    """The files of a search at some moment. `curves` are the epochs of each trial, `tests` those of all pairs."""

    record: SearchRecord
    trials: list[Trial]
    curves: dict[int, list[Epoch]]
    tests: PairwiseTests[int]
    selection: SelectedTrial | None
    selected_run: RunRecord | None  # of the selected trial
    test_accuracy: float | None = None  # of the selected trial's best weights, once it is measured
    measured_images: int = 0  # that it is of

    @classmethod
    def read(cls, search: Search) -> "SearchData":
        """Read a search.

        Raises:
            UserError: There is no search, or a file of it is damaged.
        """
        record, trials = search.read(), search.trials()
        tests = search.compare(trials, record.data.val_images)
        selection = select_trial(trials, tests, record.select)
        selected_run = None
        if selection is not None:
            with contextlib.suppress(UserError):  # it has just begun; the rest can be shown
                selected_run = search.trial_run(selection.trial).read_as_written()
        run = search.run.read_as_written() if files.is_file(search.run.record_file) else None
        curves = {trial.id: search.trial_run(trial).epochs() for trial in trials}
        test_accuracy = run.best.test_accuracy if run and run.best else None
        measured_images = run.measured_images if run else 0
        return cls(record, trials, curves, tests, selection, selected_run, test_accuracy, measured_images)

    @property
    def images(self) -> int:
        """Number of validation images."""
        return self.record.data.val_images

    @cached_property
    def validated(self) -> list[Trial]:
        """Trials with a validation accuracy, the best last."""
        return sorted((t for t in self.trials if t.val_accuracy is not None), key=self._rank)

    def _rank(self, trial: Trial) -> tuple[float, int]:
        score = trial.score(self.record.select)
        return (-math.inf if score is None else score), -trial.id

    @cached_property
    def kinds(self) -> list[str]:
        """Kinds of network that were trained."""
        return [kind for kind in KINDS if any(kind_of(t) == kind for t in self.trials)]

    @cached_property
    def depths(self) -> list[int]:
        """Depths that were trained, in ascending order."""
        return sorted({trial.depth for trial in self.trials})

    @cached_property
    def others(self) -> dict[str, list[Any]]:
        """Searched options other than network and learning rate, with the values tried."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.options if name not in NETWORK)
        tried = {name: [t.options[name] for t in self.trials if name in t.options] for name in names}
        return {name: values for name, values in tried.items() if len(set(map(repr, values))) > 1}

    def best_of(self, kind: str, depth: int) -> Trial | None:
        """Return the best trial of a depth, a failed one only if there is no other, as in the selection."""
        of_depth = [trial for trial in self.validated if kind_of(trial) == kind and trial.depth == depth]
        return max(of_depth, key=lambda t: (t.status != "failed", *self._rank(t)), default=None)

    def bests(self, kind: str) -> list[Trial]:
        """Return the best trial of each depth, the shallowest first."""
        return [best for depth in self.depths if (best := self.best_of(kind, depth))]

    def with_status(self, status: TrialStatus) -> list[Trial]:
        """Return the trials with this status."""
        return [trial for trial in self.trials if trial.status == status]


def kind_of(trial: Trial) -> str:
    """Return the kind of its network, 'plain' or 'resnet'."""
    return "plain" if trial.model.startswith("plain") else "resnet"


def val_error(epoch: Epoch) -> float:
    """Return the validation error of an epoch; a search has validation images."""
    assert epoch.val_error is not None
    return epoch.val_error


def error(trial: Trial) -> float:
    """Return the top-1 error of the best epoch of a validated trial."""
    assert trial.val_accuracy is not None
    return 1 - trial.val_accuracy


def error_bar(trial: Trial, images: int) -> tuple[float, float]:
    """Return how far the 95% confidence interval of that error reaches below and above it."""
    low, high = wilson_interval(error(trial), images)
    return error(trial) - low, high - error(trial)


def verdict(kind: str, bests: Sequence[Trial], tests: PairwiseTests[int]) -> str:
    """Return in a sentence whether deeper networks were better; "" for fewer than two depths.

    Args:
        kind: Of the networks.
        bests: The best trial of each depth, the shallowest first.
        tests: Of all trials, not of the best only: the best of many is high by chance.
    """
    name = KINDS[kind].capitalize() + " networks"
    if len(bests) < 2:
        return ""

    def differ(a: Trial, b: Trial) -> bool:
        return tests.differ(a.id, b.id)

    first, last = bests[0], bests[-1]
    best = min(bests, key=lambda trial: (error(trial), trial.depth))
    if last is not best and differ(last, best):
        return f"{name}: the deepest is not the best: {_best_at(last)}, {_best_at(best)}."
    if not differ(first, best):
        return f"{name}: no difference beyond chance from depth {first.depth} to {last.depth}."
    enough = next(trial for trial in bests if not differ(trial, best))
    if enough is last:
        return f"{name}: the deepest is the best: {_best_at(first)}, {_best_at(last)}."
    return (
        f"{name}: deeper is better up to depth {enough.depth}: {_best_at(first)}, {_best_at(enough)}; beyond that "
        "there is no difference beyond chance."
    )


def _best_at(trial: Trial) -> str:
    return f"{percent(error(trial))} error at depth {trial.depth}"
