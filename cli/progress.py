"""The progress of a job on stderr: live on a terminal, a line for each epoch or trial in a pipe."""

import threading
import time
from collections.abc import Collection
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from resnet_ops import files
from resnet_ops.class_metrics import SELECT_NAMES, metric_text
from resnet_ops.formatting import duration, percent
from resnet_ops.orchestration.job_protocol import report_milestone
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.training.observer import Observer, Overview
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Trial
from resnet_ops.tuning.space import Choices, Range

from .console import Bar, err, hint_line, image_counts, show_rows, table_to_cut, warn
from .epoch_rows import STAR, EpochRows

STEPS_OF_ESTIMATE, SLOW_STEPS_OF_ESTIMATE = 10, 3  # after which the remaining time is told
SLOW_STEP_S = 2.0
WORTH_TELLING_S = 60.0
FIRST_ESTIMATE_S = 10.0  # of a search
ROOM_FOR_SPEED, ROOM_FOR_LOSS = 72, 92  # characters of a terminal


class TrainingProgress(Observer):
    """Shows the progress of a training run. Called from the thread of the job and the main one.

    The bar keeps epoch, share and remaining time at any width; speed and loss come where there is room for them.
    """

    def __init__(self, given: Collection[str] = ()) -> None:
        """Show no progress yet.

        Args:
            given: The options that the user gave.
        """
        self.given = given
        self.record: RunRecord | None = None
        self.rows: EpochRows | None = None
        self.began: tuple[float, int] | None = None  # when, after how many steps
        self.is_estimated = self.has_header = False
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[share]}"),
            TextColumn("{task.fields[numbers]}"),
            console=err,
            transient=True,
            expand=True,
            refresh_per_second=4,
            disable=not err.is_live,
        )
        self.task = self.bar.add_task("Loading PyTorch and Ray", total=None, share="", numbers="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def run_created(self, run: Run, record: RunRecord, overview: Overview | None = None) -> None:
        self.record = record
        self.rows = EpochRows(record, err.width if err.is_terminal else None)
        for epoch in run.epochs():  # of a run that is resumed
            self.rows.row(epoch)
        report_milestone("created")
        if overview is None:
            return
        show_rows(err, overview.rows)
        if overview.hint:
            hint_line(overview.hint)

    def warn(self, message: str) -> None:
        warn(message)

    def stopping(self) -> None:
        _show_stopping()

    def progress(self, progress: dict[str, Any]) -> None:
        if self.record is not None and "epoch" in progress:
            self._show_steps(progress)
        elif "images" in progress:
            rate = progress["images_per_second"]
            left_s = (progress["images"] - progress["done"]) / rate if rate else None
            self._update(
                f"{progress['stage']} images",
                progress["done"],
                progress["images"],
                left_s,
                "" if rate is None else f"{rate:,.0f} images/s",
            )
        else:
            self.bar.update(
                self.task, description=escape(str(progress.get("stage", ""))), total=None, share="", numbers=""
            )

    def _show_steps(self, progress: dict[str, Any]) -> None:
        assert self.record is not None
        epochs, steps = self.record.config.epochs, progress["steps"]
        done, now = (progress["epoch"] - 1) * steps + progress["step"], time.monotonic()
        if self.began is None:
            self.began = now, done
        since, before = self.began
        left_s = None
        measured = done - before
        is_slow = measured >= SLOW_STEPS_OF_ESTIMATE and now - since > SLOW_STEP_S * measured
        if is_slow or measured >= STEPS_OF_ESTIMATE or (self.is_estimated and measured):
            left_s = (now - since) / measured * (epochs * steps - done)
            if not self.is_estimated and left_s > WORTH_TELLING_S:
                show_rows(err, [("time", f"about {duration(left_s)}, by the first {measured} steps")])
                self._show_hint(left_s)
            self.is_estimated = True
        speed = f"{progress['images_per_second']:>9,.0f} images/s"
        loss = f"  train loss {progress['train_loss']:7.4f}"
        numbers = speed + loss if err.width >= ROOM_FOR_LOSS else speed if err.width >= ROOM_FOR_SPEED else ""
        self._update(f"epoch {progress['epoch']:>{len(str(epochs))}}/{epochs}", done, epochs * steps, left_s, numbers)

    def _show_hint(self, left_s: float) -> None:
        from resnet_ops.training.defaults import suggest_shorter  # by now imported, so that the bar was there before

        assert self.record is not None
        record = self.record
        hint = suggest_shorter(record.data, record.config.epochs, record.device, self.given, left_s)
        if hint and not record.resumed:
            hint_line(hint)

    def _update(self, what: str, done: int, total: int, left_s: float | None, numbers: str) -> None:
        eta = "-:--:--" if left_s is None else str(timedelta(seconds=round(left_s)))
        share = f"{done / max(total, 1):4.0%}  ETA {eta:>7}"
        self.bar.update(self.task, description=what, completed=done, total=total, share=share, numbers=numbers)

    def epoch_done(self, epoch: Epoch) -> None:
        if self.rows is None:
            return
        if not self.has_header:
            err.print(f"[bold]{self.rows.header}[/]", soft_wrap=True)
            self.has_header = True
        row = self.rows.row(epoch)
        err.print(f"[green]{row}[/]" if row.endswith(STAR) else row, soft_wrap=True)


def _show_stopping() -> None:
    err.print("Stopping: saving a checkpoint (once more ends at once)", soft_wrap=True)


STATUS_COLORS = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}
TABLE_ROWS = 14  # trials in the live table


class SearchProgress(SearchObserver):
    """Shows the progress of a search. Called from the thread of the search and the main one."""

    def __init__(self) -> None:
        self.stage = "Loading PyTorch and Ray"
        self.trials: dict[int, Trial] = {}
        self.reported: set[int] = set()  # trials whose end was shown
        self.record: SearchRecord
        self.search: Search | None = None
        self.began: tuple[float, float] | None = None  # when training began, and how many trainings were done then
        self.mutex = threading.Lock()
        self.live = Live(
            get_renderable=self._render, console=err, refresh_per_second=4, transient=True, auto_refresh=err.is_live
        )

    def __enter__(self) -> Self:
        if err.is_live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def warn(self, message: str) -> None:
        warn(message)

    def stopping(self) -> None:
        _show_stopping()

    def progress(self, progress: dict[str, Any]) -> None:
        self.stage = str(progress.get("stage", ""))

    def search_started(self, search: Search, record: SearchRecord, slots: TrialSlots) -> None:
        """Show the search space and the resources."""
        self.search, self.record, self.stage = search, record, "Starting Ray"
        config, data = record.config, record.data
        searched = ", ".join(f"{name} {_values(values)}" for name, values in record.space.searched.items())
        stops = "" if config.scheduler == "none" else f", {config.scheduler}"
        at_once = min(slots.max_concurrent, record.planned, config.max_concurrent or slots.max_concurrent)
        report_milestone("created")
        err.print(
            f"[bold]{record.planned} trials[/] on [bold]{escape(data.name)}[/] "
            f"({image_counts(data.train_images, data.val_images, data.test_images)}), up to {record.epochs} epochs "
            f"each: {escape(searched)}; {config.search}{stops}; {at_once} at once on {slots.device}; "
            f"search [bold]{escape(search.run.name)}[/]",
            soft_wrap=True,
        )

    def trial_changed(self, trial: Trial) -> None:
        """Update the table, and show how a trial ended."""
        with self.mutex:
            self.trials[trial.id] = trial
        if trial.has_ended and trial.id not in self.reported:
            self.reported.add(trial.id)
            if not err.is_live:
                self._show_end(trial)

    def _show_end(self, trial: Trial) -> None:
        accuracy = "" if trial.val_accuracy is None else f"  {self._metric(trial)}"
        reason = f" {escape(trial.reason)}" if trial.reason else f" after {trial.epochs} epochs"
        err.print(
            f"trial {trial.id:>{len(str(self.record.planned))}}/{self.record.planned}  {trial.model:<10} "
            f"lr {trial.lr:<8.3g}{accuracy}  {trial.status}{reason}{self._best()}",
            soft_wrap=True,
        )

    def _best(self) -> str:
        select = self.record.select
        scored = [(score, -t.id, t) for t in self.trials.values() if (score := t.score(select)) is not None]
        if not scored:
            return ""
        *_, best = max(scored)
        return f"; best so far {self._metric(best)}, trial {best.id}"

    def _metric(self, trial: Trial) -> str:
        """Return what the best trial is chosen by, named unless it is the accuracy."""
        select = self.record.select
        if select == "top1" or trial.metric is None:
            return "" if trial.val_accuracy is None else percent(trial.val_accuracy)
        return metric_text(select, trial.metric)

    def _render(self) -> Any:
        with self.mutex:
            trials = sorted(self.trials.values(), key=lambda t: t.id)
        if not trials:
            return Spinner("dots", text=Text(self.stage))
        columns = (">trial", "network", ">lr", ">epoch", ">", f">best {SELECT_NAMES[self.record.select]}", "status")
        running = [trial for trial in trials if not trial.has_ended]
        done = [trial for trial in trials if trial.has_ended]
        shares = {trial.id: self._share(trial) for trial in running}
        cells = [
            (
                str(trial.id),
                trial.model,
                f"{trial.lr:.3g}",
                f"{trial.epochs}/{trial.planned_epochs or self.record.epochs}",
                f"{shares[trial.id]:.0%}" if trial.id in shares else "",
                self._metric(trial),
                f"[{STATUS_COLORS[trial.status]}]{trial.status}[/] {escape(trial.reason)}",
            )
            for trial in sorted([*done[-max(TABLE_ROWS - len(running), 3) :], *running], key=lambda t: t.id)
        ]
        rows = table_to_cut(columns, cells, ("network", "status"))
        rows.columns[-1].min_width = max(map(len, STATUS_COLORS))
        left_s = self._left_s(len(done) + sum(shares.values()))
        eta = "" if left_s is None else f"; {self._at_most}about {duration(left_s)} left"
        line = Text(f"{len(done)} of {self.record.planned} trials done{self._best()}{eta}", style="bold")
        hint = self._hint(left_s) if left_s and not done else None
        return Group(rows, line, Text(f"hint: {hint}", style="green")) if hint else Group(rows, line)

    def _share(self, trial: Trial) -> float:
        """Return which share of its epochs a running trial has trained, to a few steps."""
        epochs, part = trial.planned_epochs or self.record.epochs, 0.0
        if self.search is not None and not files.is_remote(self.search.run.path):
            progress = self.search.trial_run(trial).read_progress()[0] or {}
            if progress.get("epoch") == trial.epochs + 1:
                part = progress["step"] / progress["steps"]
        return (trial.epochs + part) / epochs

    def _left_s(self, trained: float) -> float | None:
        """Estimate the seconds that are left after so many trainings; None before there is something to go by."""
        now = time.monotonic()
        if self.began is None:
            self.began = now, trained
        since, before = self.began
        if trained == before or now - since < FIRST_ESTIMATE_S:
            return None
        return (now - since) / (trained - before) * (self.record.planned - trained)

    @property
    def _at_most(self) -> str:
        return "" if self.record.config.scheduler == "none" else "at most "

    def _hint(self, left_s: float) -> str | None:
        from resnet_ops.training.defaults import suggest_shorter  # by now imported

        record = self.record
        given = {*record.config.given, *record.space.searched, *record.space.fixed}
        return suggest_shorter(record.data, record.epochs, record.device, given, left_s)


def _values(values: Choices | Range) -> str:
    if isinstance(values, Choices):
        return ",".join(map(str, values.values))
    return f"{values.low:g}:{values.high:g}{' log' if values.log else ''}"
