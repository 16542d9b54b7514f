"""The files of a search, and which of its trials is selected.

A search's directory is that of a run, the best trial's, with more in it:

    runs/NAME/tune.json      what is searched, and on what: one `SearchRecord`
              trials.jsonl   one `Trial` per line, in order
              trials/001/    each trial's own run directory
              tune.html/png  the report and its pictures

Nothing here imports torch or Ray.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from resnet_ops import files, runs
from resnet_ops.class_metrics import metric_text
from resnet_ops.config import Select, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.orchestration.placement import Device
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.run_records import DataRecord, RecordOfConfig
from resnet_ops.runs import Run
from resnet_ops.significance import MeasuredAccuracy, PairwiseTests, compare
from resnet_ops.training.observer import Observer
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import Space

TrialStatus = Literal["running", "finished", "stopped", "failed"]


class SearchRecord(RecordOfConfig):
    """The content of tune.json: what is searched, on which images, with which code."""

    format: Literal[1] = 1
    name: str
    config: TuneConfig
    space: Space
    data: DataRecord
    device: Device
    epochs: int
    planned: int  # trials
    created: datetime
    code: str  # SHA-256 of what computes the result
    versions: dict[str, str]
    command: str = "tune"  # that resumes it; a study is a search whose points are given
    machines: int | None = None  # of a cluster, to run the trials on

    @property
    def select(self) -> Select:
        """The metric that trials and their epochs are selected by."""
        select: Select = self.config.given.get("select", TrainConfig.default("select"))
        return select

    @property
    def noun(self) -> str:
        """'search' or 'study', for messages."""
        return self.command.split()[0].replace("tune", "search")


class Trial(BaseModel):
    """A line of trials.jsonl. `val_accuracy` is that of `best_epoch`, `last_val_accuracy` the last's.

    `metric` is what `--select` names, in the best epoch.

    Times are seconds.

    `options` is the trial's point of the search space; `lr` and `model` may be in it or not.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    options: dict[str, Any]
    model: str
    depth: int
    lr: float
    status: TrialStatus = "running"
    reason: str = ""
    epochs: int = 0  # done
    planned_epochs: int = 0  # those of its recipe; 0 until it has begun
    parameters: int = 0
    val_accuracy: float | None = None
    metric: float | None = None
    last_val_accuracy: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0  # of training, in total

    def score(self, select: Select) -> float | None:
        """Return what trials are ranked by, the highest first; None where it was not measured."""
        if select == "top1":  # of searches of earlier versions too
            return self.val_accuracy
        return -self.metric if self.metric is not None and select == "loss" else self.metric

    @property
    def has_ended(self) -> bool:
        """True where it finished, was stopped or failed."""
        return self.status != "running"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.id:03d}"


class Search:
    """A search's directory: that of a run, with the files of a search."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.record_file = run.search_file
        self.trials_file = run.path / "trials.jsonl"
        self.trials_dir = run.path / "trials"
        self.page = run.path / "tune.html"
        self.picture = run.path / "tune.png"

    @property
    def exists(self) -> bool:
        """True where the run is a search."""
        return files.is_file(self.record_file)

    def read(self) -> SearchRecord:
        """Read tune.json.

        Raises:
            UserError: The run is no search, or tune.json is damaged.
        """
        try:
            return SearchRecord.model_validate_json(files.read(self.record_file))
        except FileNotFoundError:
            raise UserError(f"{self.run.name} is a run, not a search.", f"See {self.run.path}.") from None
        except (ValidationError, OSError) as error:
            raise runs.unreadable(self.record_file, error) from None

    def write(self, record: SearchRecord) -> None:
        """Write tune.json."""
        files.write_atomically(self.record_file, record.model_dump_json(indent=2).encode() + b"\n")

    def trials(self) -> list[Trial]:
        """Read trials.jsonl, in order."""
        try:
            lines = files.read(self.trials_file).splitlines()  # of bytes: at newlines only
        except FileNotFoundError:
            return []
        return [Trial.model_validate_json(line) for line in lines]

    def write_trials(self, trials: Iterable[Trial]) -> None:
        """Replace trials.jsonl."""
        lines = [trial.model_dump_json() + "\n" for trial in sorted(trials, key=lambda trial: trial.id)]
        files.write_atomically(self.trials_file, "".join(lines).encode())

    def trial_run(self, trial: Trial | int) -> Run:
        """Return a trial's own run directory."""
        number = trial.id if isinstance(trial, Trial) else trial
        return Run(self.trials_dir / f"{number:03d}")

    def compare(self, trials: Iterable[Trial], images: int) -> PairwiseTests[int]:
        """Test which trials' best accuracies on the validation images differ by more than chance; by their ids."""
        return compare(
            {
                trial.id: MeasuredAccuracy.of(trial.val_accuracy, images, self.trial_run(trial).val_correct())
                for trial in trials
                if trial.val_accuracy is not None
            }
        )

    def publish(self, trial: Trial) -> None:
        """Make the search's directory the run that `trial` is: its best weights and its metrics."""
        source = self.trial_run(trial)
        for name in ("model.safetensors", "model.json"):
            files.write_atomically(self.run.best / name, files.read(source.best / name))
        self.run.write_epochs(source.epochs())


@dataclass(frozen=True)
class SelectedTrial:
    """The best trial, and in a sentence why it was selected."""

    trial: Trial
    why: str


def select_trial(trials: Sequence[Trial], tests: PairwiseTests[int], select: Select = "top1") -> SelectedTrial | None:
    """Return the best trial: the smallest network's within one standard error of the highest accuracy.

    Of other metrics it is the best itself, of equals the smallest network's: the tests are of accuracies.

    Args:
        trials: All trials.
        tests: Of their accuracies, as `Search.compare` makes them.
        select: The metric.

    Returns:
        None if no trial has validated.
    """
    scored = [(score, trial) for trial in trials if (score := trial.score(select)) is not None]
    scored = [(accuracy, trial) for accuracy, trial in scored if trial.status != "failed"] or scored
    if not scored:
        return None
    highest, leader = max(scored, key=lambda pair: (pair[0], -pair[1].parameters, -pair[1].id))
    if select != "top1":
        best_is = "lowest" if select == "loss" else "highest"
        why = f"the {best_is} validation {metric_text(select, abs(highest))}, of {len(scored)} trials"
        return SelectedTrial(leader, why)
    tied = [(accuracy, trial) for accuracy, trial in scored if tests.is_tied(trial.id, leader.id)]
    _, best = min(tied, key=lambda pair: (pair[1].parameters, -pair[0], pair[1].id))
    if best is leader:
        similar = sum(not tests.differ(trial.id, best.id) for _, trial in scored if trial is not best)
        lead = f", not distinguishable from {similar} other{'s' * (similar > 1)} ({tests.name})" if similar else ""
        return SelectedTrial(best, f"the highest accuracy of {len(scored)} trials{lead}")
    return SelectedTrial(
        best,
        f"the smallest network within one standard error of the highest accuracy, {percent(highest)} by trial "
        f"{leader.id} ({leader.model}, {leader.parameters:,} parameters)",
    )


def find_search(runs_dir: Path, name: str) -> Search:
    """Return the search called `name`.

    Raises:
        UserError: There is none; the message suggests the nearest name.
    """
    search = Search(runs.find(runs_dir, name))
    search.read()
    return search


class SearchObserver(Observer):
    """Receives the progress of a search, from a thread of its own; does nothing unless overridden."""

    def search_started(self, search: Search, record: SearchRecord, slots: TrialSlots) -> None:
        """Receive a search whose request is valid and whose directory exists."""

    def trial_changed(self, trial: Trial) -> None:
        """Receive a trial that has started, trained an epoch or ended."""
