"""The progress of a job on stderr: live on a terminal, a line for each epoch or trial in a pipe."""

import threading
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from resnet_ops.class_metrics import SELECT_NAMES, metric_text
from resnet_ops.config_base import as_options
from resnet_ops.formatting import image_size, percent
from resnet_ops.orchestration.job_protocol import report_milestone
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.training.observer import Observer
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Trial
from resnet_ops.tuning.space import Choices, Range

from .console import err, image_counts, table, warn


class TrainingProgress(Observer):
    """Shows the progress of a training run. Called from the thread of the job and the main one."""

    def __init__(self) -> None:
        self.record: RunRecord | None = None
        self.last_epoch: Epoch | None = None
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=err,
            transient=True,
            expand=True,
            refresh_per_second=4,
            disable=not err.is_terminal,
        )
        self.task = self.bar.add_task("Loading PyTorch and Ray", total=None, numbers="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def run_created(self, run: Run, record: RunRecord) -> None:
        self.record = record
        data, workers = record.data, "worker" if record.world_size == 1 else "workers"
        options = " ".join(as_options(record.config.unusual()))
        report_milestone("created")
        err.print(
            f"[bold]{record.config.model}[/] ({record.parameters:,} parameters) on [bold]{escape(data.name)}[/]: "
            f"{image_counts(data.train_images, data.val_images, data.test_images)} of "
            f"{image_size(data.height, data.width)}, {len(data.class_names)} classes; "
            f"{record.world_size} {record.device} {workers}; "
            f"{escape(options)}{'; ' if options else ''}run "
            f"[bold]{escape(run.name)}[/]",
            soft_wrap=True,
        )
        err.print(f"augmentation: {record.augmentation}", soft_wrap=True)

    def warn(self, message: str) -> None:
        warn(message)

    def stopping(self) -> None:
        _show_stopping()

    def progress(self, progress: dict[str, Any]) -> None:
        if self.record is None or "epoch" not in progress:
            self.bar.update(self.task, description=escape(str(progress.get("stage", ""))))
            return
        epochs = self.record.config.epochs
        val_error = self.last_epoch.val_error if self.last_epoch else None
        val = "" if val_error is None else f", {percent(val_error, 1)} val"
        self.bar.update(
            self.task,
            description=f"epoch {progress['epoch']}/{epochs}",
            total=epochs * progress["steps"],
            completed=(progress["epoch"] - 1) * progress["steps"] + progress["step"],
            numbers=f"{progress['images_per_second']:,.0f} img/s  loss {progress['train_loss']:.3f}  "
            f"error {percent(progress['train_error'], 1)} train{val}  ETA",
        )

    def epoch_done(self, epoch: Epoch) -> None:
        self.last_epoch = epoch
        if err.is_terminal or self.record is None:
            return
        width = len(str(self.record.config.epochs))
        val = ""
        if epoch.val_error is not None:
            val = f"  val loss {epoch.val_loss:.4f} error {percent(epoch.val_error, 1):>6}{self._selected(epoch)}"
        err.print(
            f"epoch {epoch.epoch:{width}}/{self.record.config.epochs}  train loss {epoch.train_loss:.4f} "
            f"error {percent(epoch.train_error, 1):>6}{val}  {epoch.images_per_second:>7,.0f} img/s",
            soft_wrap=True,
        )

    def _selected(self, epoch: Epoch) -> str:
        """Return the metric that the best epoch is chosen by, unless it is there already."""
        select = self.record.config.select if self.record else "top1"
        metric = epoch.selected_metric(select)
        return "" if select in ("top1", "loss") or metric is None else f"  {metric_text(select, metric)}"


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
        self.done_before: set[int] = set()  # those that had ended when a search was resumed
        self.record: SearchRecord
        self.search: Search | None = None
        self.started = time.monotonic()
        self.mutex = threading.Lock()
        self.live = Live(
            get_renderable=self._render, console=err, refresh_per_second=4, transient=True, auto_refresh=err.is_terminal
        )

    def __enter__(self) -> Self:
        if err.is_terminal:
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
            if trial.has_ended and not self.trials and trial.id not in self.reported:
                self.done_before.add(trial.id)
            self.trials[trial.id] = trial
        if trial.has_ended and trial.id not in self.reported:
            self.reported.add(trial.id)
            if not err.is_terminal:
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
        rows: Table = table(">trial", "network", ">lr", ">epoch", f">best {SELECT_NAMES[self.record.select]}", "status")
        rows.columns[-1].no_wrap, rows.columns[-1].overflow = True, "ellipsis"
        running = [trial for trial in trials if not trial.has_ended]
        done = [trial for trial in trials if trial.has_ended]
        for trial in sorted([*done[-max(TABLE_ROWS - len(running), 3) :], *running], key=lambda t: t.id):
            accuracy = self._metric(trial)
            rows.add_row(
                str(trial.id),
                trial.model,
                f"{trial.lr:.3g}",
                f"{trial.epochs}/{trial.planned_epochs or self.record.epochs}",
                accuracy,
                f"[{STATUS_COLORS[trial.status]}]{trial.status}[/] {escape(trial.reason)}",
            )
        line = f"{len(done)} of {self.record.planned} trials done{self._best()}{self._eta(len(done))}"
        return Group(rows, Text(line, style="bold"))

    def _eta(self, done: int) -> str:
        done_now = done - len(self.done_before)
        if done_now <= 0:
            return ""
        left_s = (time.monotonic() - self.started) / done_now * (self.record.planned - done)
        return f"; about {left_s / 60:.0f} min left" if left_s >= 90 else f"; about {left_s:.0f} s left"


def _values(values: Choices | Range) -> str:
    if isinstance(values, Choices):
        return ",".join(map(str, values.values))
    return f"{values.low:g}:{values.high:g}{' log' if values.log else ''}"
