"""What a search found, as it lies in its directory: that of a run, the best trial's, with more in it.

    runs/NAME/tune.json      what is searched, and on what: one `SearchRecord`
              trials.jsonl   one `Trial` a line, in order
              trials/001/    each trial's own run directory
              tune.html/png  the pictures

Nothing here knows torch or Ray.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from resnet_ops import files, runs
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.orchestration.placement import Device
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.runs import DataRecord, Run
from resnet_ops.significance import is_tied, standard_error
from resnet_ops.training.observer import Observer
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import Space

TrialStatus = Literal["running", "finished", "stopped", "failed"]


class SearchRecord(BaseModel):
    """tune.json."""

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
    command: str = "tune"  # that goes on with it; a study is a search whose points are given
    machines: int | None = None  # of a cluster, to spread the trials over

    @property
    def what(self) -> str:
        """What it is called."""
        return self.command.split()[0].replace("tune", "search")


class Trial(BaseModel):
    """One line of trials.jsonl. `val_accuracy` is the best epoch's; times are seconds.

    `options` are those that the search chose for it; `lr` and `model` may be among them or not.
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
    parameters: int = 0
    val_accuracy: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0  # of training, in all

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will be trained of it."""
        return self.status != "running"

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.id:03d}"


class Search:
    """A search's directory: a run's, and what a search has besides."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.record_file = run.search_file
        self.trials_file = run.path / "trials.jsonl"
        self.trials_dir = run.path / "trials"
        self.page = run.path / "tune.html"
        self.picture = run.path / "tune.png"

    @property
    def exists(self) -> bool:
        """Whether the run is a search."""
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
            detail = str(error).splitlines()[0]
            raise UserError(f"{self.record_file} cannot be read ({detail}).", "The search is damaged.") from None

    def write(self, record: SearchRecord) -> None:
        """Write tune.json."""
        files.write_atomically(self.record_file, record.model_dump_json(indent=2).encode() + b"\n")

    def trials(self) -> list[Trial]:
        """Read trials.jsonl, in order."""
        try:
            lines = files.read(self.trials_file).decode().splitlines()
        except FileNotFoundError:
            return []
        return [Trial.model_validate_json(line) for line in lines]

    def write_trials(self, trials: Iterable[Trial]) -> None:
        """Replace trials.jsonl."""
        lines = [trial.model_dump_json() + "\n" for trial in sorted(trials, key=lambda trial: trial.id)]
        files.write_atomically(self.trials_file, "".join(lines).encode())

    def trial_run(self, trial: Trial | int) -> Run:
        """A trial's own run directory."""
        number = trial.id if isinstance(trial, Trial) else trial
        return Run(self.trials_dir / f"{number:03d}")

    def publish(self, trial: Trial) -> None:
        """Make the search's directory the run that `trial` is: its best weights and its metrics."""
        source = self.trial_run(trial)
        for name in ("model.safetensors", "model.json"):
            files.write_atomically(self.run.best / name, files.read(source.best / name))
        self.run.write_epochs(source.epochs())


@dataclass(frozen=True)
class Selection:
    """Which trial is best, and in a sentence why this one."""

    trial: Trial
    why: str


def select(trials: Sequence[Trial], val_images: int) -> Selection | None:
    """The best trial: of those within one standard error of the highest accuracy, the smallest network's.

    Returns:
        None where no trial has validated.
    """
    scored = [(trial.val_accuracy, trial) for trial in trials if trial.val_accuracy is not None]
    scored = [(accuracy, trial) for accuracy, trial in scored if trial.status != "failed"] or scored
    if not scored:
        return None
    highest, leader = max(scored, key=lambda pair: (pair[0], -pair[1].parameters, -pair[1].id))
    error = standard_error(highest, val_images)
    tied = [(accuracy, trial) for accuracy, trial in scored if is_tied(accuracy, highest, val_images)]
    _, best = min(tied, key=lambda pair: (pair[1].parameters, -pair[0], pair[1].id))
    if best is leader:
        others = sum(trial.parameters > best.parameters for _, trial in tied)
        tie = f"; {others} larger within one standard error" if others else ""
        return Selection(best, f"the highest accuracy of {len(scored)} trials (standard error {percent(error)}{tie})")
    return Selection(
        best,
        f"the smallest network within one standard error ({percent(error)}) of the highest accuracy, "
        f"{percent(highest)} by trial {leader.id} ({leader.model}, {leader.parameters:,} parameters)",
    )


def find(runs_dir: Path, name: str) -> Search:
    """The search called `name`.

    Raises:
        UserError: There is none; names the nearest.
    """
    search = Search(runs.find(runs_dir, name))
    search.read()
    return search


class SearchObserver(Observer):
    """Told what a search does, from a thread of its own; does nothing, for others to override."""

    def search_begun(self, search: Search, record: SearchRecord, pool: TrialSlots) -> None:
        """The request was found sound, and the directory is there."""

    def trial_changed(self, trial: Trial) -> None:
        """A trial began, trained an epoch or ended."""
