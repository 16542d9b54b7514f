"""The state of a search's trials while it runs, written to its directory as it changes.

What Ray Tune calls to report it is in `runner`; the files and what is in them are in `results`.
"""

import contextlib
import threading
from typing import Any

from resnet_ops import files
from resnet_ops.architectures import parse_name
from resnet_ops.run_records import Best, Status
from resnet_ops.runs import Run
from resnet_ops.stop_request import Stop
from resnet_ops.tracking.tracker import Tracker
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, SelectedTrial, Trial, select_trial
from resnet_ops.tuning.space import train_options

STOP_REASON = {
    "asha": "in the lower half of trials at that share of training",
    "median": "below the median of other trials",
}


class TrialLog:
    """All trials of a search so far; written to trials.jsonl when one starts or ends.

    `stop` ends the search when it is set; `stopped_by` is then who asked for that, `pause_reason` why it can be resumed
    only once that is mended.
    """

    def __init__(self, search: Search, record: SearchRecord, observer: SearchObserver, tracker: Tracker) -> None:
        self.search, self.record, self.observer, self.tracker = search, record, observer, tracker
        self.trials = {trial.id: trial for trial in search.trials()}
        self.stop = threading.Event()
        self.pause_reason = ""
        self.stopped_by: Stop | None = None

    @property
    def ended_trials(self) -> list[Trial]:
        """The trials that have ended."""
        return [trial for trial in self.trials.values() if trial.has_ended]

    def selected(self) -> SelectedTrial | None:
        """Return the best trial so far."""
        trials = list(self.trials.values())
        return select_trial(trials, self.search.compare(trials, self.record.data.val_images), self.record.select)

    def save(self) -> None:
        """Write trials.jsonl."""
        self.search.write_trials(self.trials.values())

    def start_trial(self, number: int, point: dict[str, Any]) -> None:
        """Record that a worker starts a trial, anew or again."""
        if number not in self.trials:
            options = train_options(point)
            model = options.get("model", "")
            lr = options.get("lr", 0.0)
            self.trials[number] = Trial(
                id=number, options=point, model=model, depth=parse_name(model).depth, lr=float(lr)
            )
            self.save()
        self.observer.trial_changed(self.trials[number])

    def update_trial(self, number: int, result: dict[str, Any], point: dict[str, Any]) -> None:
        """Record what a worker reports of a trial: an epoch, or that it failed or has to pause."""
        trial = self.trials[number]
        if trial.has_ended:  # one of a resumed search, reported again
            return
        update = {
            "epochs": result["epoch"],
            "planned_epochs": result["planned_epochs"],
            "parameters": result["parameters"],
            "seconds": result["seconds"],
            "options": point,
            "lr": float(point.get("lr", trial.lr)),
        }
        if result["best_epoch"]:
            update |= {
                "val_accuracy": result["best_val_accuracy"],
                "metric": result["best_metric"],
                "best_epoch": result["best_epoch"],
            }
        if "val_error" in result:
            update["last_val_accuracy"] = 1 - result["val_error"]
        if "failed" in result:
            update |= {"status": "failed", "reason": result["failed"]}
            update.pop("val_accuracy", None)
            update.pop("metric", None)
        if "ended" in result:  # by its own options, early
            update["reason"] = result["ended"]
        self.trials[number] = trial.model_copy(update=update)
        if "stopped" in result:
            self.stopped_by = self.stopped_by or Stop(*result["stopped"])
            self.stop.set()
        if "paused" in result:
            self.pause_reason = result["paused"]
            self.stop.set()
        self.observer.trial_changed(self.trials[number])
        if result["epoch"]:
            self.tracker.update(self.search.trial_run(number))

    def end_trial(self, number: int, failure: str = "") -> None:
        """Record that a trial has ended: it is finished, was stopped by the scheduler, or failed."""
        trial = self.trials[number]
        if not trial.has_ended:
            update: dict[str, Any] = {"status": "finished"}
            if failure:
                update = {"status": "failed", "reason": failure}
            elif trial.epochs < trial.planned_epochs and not trial.reason:
                reason = STOP_REASON.get(self.record.config.scheduler, "by the scheduler")
                update = {
                    "status": "stopped",
                    "reason": f"after epoch {trial.epochs} of {trial.planned_epochs}: {reason}",
                }
            trial = self.trials[number] = trial.model_copy(update=update)
        elif trial.status != "failed":
            return
        self.save()
        self._end_run(trial)
        self.observer.trial_changed(trial)

    def track_ended_trials(self) -> None:
        """Have those trials uploaded that could not be when they ended."""
        for trial in self.ended_trials:
            self.tracker.update(self.search.trial_run(trial), ended=True)

    def end_search(self, status: Status, reason: str) -> None:
        """Make the search's directory the best trial's run, if there is one, and record how the search ended."""
        run = self.search.run
        if run.is_lost():
            return
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            self.save()
            record = run.read_as_written()
            update: dict[str, Any] = {"status": status, "reason": reason}
            selected = self.selected()
            if selected is not None:
                trial = selected.trial
                trial_run = self.search.trial_run(trial)
                # What `evaluate` has measured of a search stays where it is resumed, unless other weights are the best.
                same = record.best and checkpoints.best_sha256(run) == checkpoints.best_sha256(trial_run)
                measured = record.best if same else None
                self.search.publish(trial)
                source = trial_run.read_as_written()
                own = {"name": run.name, "runs_dir": run.path.parent}
                update |= {
                    "config": source.config.model_copy(update=own),
                    "data": source.data,
                    "parameters": source.parameters,
                    "world_size": source.world_size,
                    "start": source.start,
                    "best": self._best(trial, run).tested_as(measured),
                }
            run.write(record.model_copy(update=update))

    def _best(self, trial: Trial, run: Run) -> Best:
        """Describe the best epoch of a trial, whose weights are in `run`, which is its own or the search's."""
        source = self.search.trial_run(trial)
        best, last = source.best_metrics(), source.epochs()[-1]
        assert best is not None  # as the trial has a best epoch
        return Best.of(best, last, checkpoints.best_file(run), self.record.select)

    def _end_run(self, trial: Trial) -> None:
        """Record the trial's end in its own run, and keep only the best of its weights."""
        run = self.search.trial_run(trial)
        if not files.is_file(run.record_file):
            return  # it failed before it began
        record = run.read_as_written()
        update: dict[str, Any] = {
            "status": "failed" if trial.status == "failed" else "finished",
            "reason": trial.reason,
        }
        if trial.best_epoch and trial.val_accuracy is not None:
            update["best"] = self._best(trial, run)
        run.write(record.model_copy(update=update))
        for checkpoint in checkpoints.saved_checkpoints(run):
            files.remove(checkpoint)
        self.tracker.update(run, ended=True)
