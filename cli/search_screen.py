"""A search as one watches it: a live table of its trials on a terminal, a line a trial elsewhere."""

import threading
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from resnet_ops.formatting import percent
from resnet_ops.orchestration.allocation import Pool
from resnet_ops.orchestration.milestones import tell_submitter
from resnet_ops.tuning.results import Search, SearchRecord, Trial
from resnet_ops.tuning.space import Choices, Range
from resnet_ops.tuning.watcher import SearchObserver

from .console import err, table

COLORS = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}
SHOWN = 14  # trials in the live table


class SearchScreen(SearchObserver):
    """Shows a search on stderr. Called from the search's thread and the main one."""

    def __init__(self) -> None:
        self.stage = "Loading PyTorch and Ray"
        self.trials: dict[int, Trial] = {}
        self.told: set[int] = set()  # trials whose end was said
        self.before: set[int] = set()  # those that were done when this began
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
        err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)

    def progress(self, progress: dict[str, Any]) -> None:
        self.stage = str(progress.get("stage", ""))

    def search_begun(self, search: Search, record: SearchRecord, pool: Pool) -> None:
        """Say what is searched, where."""
        self.search, self.record, self.stage = search, record, "Starting Ray"
        config, data = record.config, record.data
        searched = ", ".join(f"{name} {_values(values)}" for name, values in record.space.searched.items())
        stops = "" if config.scheduler == "none" else f", {config.scheduler}"
        at_once = min(pool.at_once, record.planned, config.max_concurrent or pool.at_once)
        tell_submitter("created")
        err.print(
            f"[bold]{record.planned} trials[/] on [bold]{escape(data.name)}[/] ({data.train_images:,} training and "
            f"{data.val_images:,} validation images), up to {record.epochs} epochs each: {escape(searched)}; "
            f"{config.search}{stops}; {at_once} at once on {pool.device}; search [bold]{escape(search.run.name)}[/]",
            soft_wrap=True,
        )

    def trial_changed(self, trial: Trial) -> None:
        """Keep the table; say how a trial ended."""
        with self.mutex:
            if trial.is_settled and not self.trials and trial.id not in self.told:
                self.before.add(trial.id)
            self.trials[trial.id] = trial
        if trial.is_settled and trial.id not in self.told:
            self.told.add(trial.id)
            if not err.is_terminal:
                self._say(trial)

    def _say(self, trial: Trial) -> None:
        accuracy = "" if trial.val_accuracy is None else f"  {percent(trial.val_accuracy)}"
        reason = f" {escape(trial.reason)}" if trial.reason else f" after {trial.epochs} epochs"
        err.print(
            f"trial {trial.id:>{len(str(self.record.planned))}}/{self.record.planned}  {trial.model:<10} "
            f"lr {trial.lr:<8.3g}{accuracy}  {trial.status}{reason}{self._best()}",
            soft_wrap=True,
        )

    def _best(self) -> str:
        scored = [(t.val_accuracy, -t.id) for t in self.trials.values() if t.val_accuracy is not None]
        if not scored:
            return ""
        accuracy, number = max(scored)
        return f"; best so far {percent(accuracy)}, trial {-number}"

    def _render(self) -> Any:
        with self.mutex:
            trials = sorted(self.trials.values(), key=lambda t: t.id)
        if not trials:
            return Spinner("dots", text=Text(self.stage))
        made: Table = table(">trial", "network", ">lr", ">epoch", ">best accuracy", "status")
        made.columns[-1].no_wrap, made.columns[-1].overflow = True, "ellipsis"
        running = [trial for trial in trials if not trial.is_settled]
        done = [trial for trial in trials if trial.is_settled]
        for trial in sorted([*done[-max(SHOWN - len(running), 3) :], *running], key=lambda t: t.id):
            accuracy = "" if trial.val_accuracy is None else percent(trial.val_accuracy)
            made.add_row(
                str(trial.id),
                trial.model,
                f"{trial.lr:.3g}",
                f"{trial.epochs}/{self.record.epochs}",
                accuracy,
                f"[{COLORS[trial.status]}]{trial.status}[/] {escape(trial.reason)}",
            )
        line = f"{len(done)} of {self.record.planned} trials done{self._best()}{self._eta(len(done))}"
        return Group(made, Text(line, style="bold"))

    def _eta(self, done: int) -> str:
        now = done - len(self.before)
        if now <= 0:
            return ""
        left = (time.monotonic() - self.started) / now * (self.record.planned - done)
        return f"; about {left / 60:.0f} min left" if left >= 90 else f"; about {left:.0f} s left"


def _values(values: Choices | Range) -> str:
    if isinstance(values, Choices):
        return ",".join(map(str, values.values))
    return f"{values.low:g}:{values.high:g}{' log' if values.log else ''}"
