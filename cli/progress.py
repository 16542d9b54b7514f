"""A training job as one watches it: a live bar on a terminal, a line an epoch elsewhere."""

from types import TracebackType
from typing import Any, Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from resnet_ops.formatting import percent
from resnet_ops.options import as_options
from resnet_ops.orchestration.milestones import tell_submitter
from resnet_ops.runs import Epoch, Run, RunRecord
from resnet_ops.training.observer import Observer

from .console import err


class Screen(Observer):
    """Shows a job on stderr. Called from the job's thread and the main one."""

    def __init__(self) -> None:
        self.record: RunRecord | None = None
        self.last: Epoch | None = None
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
        tell_submitter("created")
        err.print(
            f"[bold]{record.config.model}[/] ({record.parameters:,} parameters) on [bold]{escape(data.name)}[/]: "
            f"{data.train_images:,} training and {data.val_images:,} validation images of {data.width}x{data.height}, "
            f"{len(data.class_names)} classes; {record.world_size} {record.device} {workers}; "
            f"{escape(options)}{'; ' if options else ''}run "
            f"[bold]{escape(run.name)}[/]",
            soft_wrap=True,
        )

    def warn(self, message: str) -> None:
        err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)

    def progress(self, progress: dict[str, Any]) -> None:
        if self.record is None or "epoch" not in progress:
            self.bar.update(self.task, description=escape(str(progress.get("stage", ""))))
            return
        epochs = self.record.config.epochs
        last = f", {percent(self.last.val_error, 1)} val" if self.last else ""
        self.bar.update(
            self.task,
            description=f"epoch {progress['epoch']}/{epochs}",
            total=epochs * progress["steps"],
            completed=(progress["epoch"] - 1) * progress["steps"] + progress["step"],
            numbers=f"{progress['images_per_second']:,.0f} img/s  loss {progress['train_loss']:.3f}  "
            f"error {percent(progress['train_error'], 1)} train{last}  ETA",
        )

    def epoch_done(self, epoch: Epoch) -> None:
        self.last = epoch
        if err.is_terminal or self.record is None:
            return
        width = len(str(self.record.config.epochs))
        err.print(
            f"epoch {epoch.epoch:{width}}/{self.record.config.epochs}  train loss {epoch.train_loss:.4f} "
            f"error {percent(epoch.train_error, 1):>6}  val loss {epoch.val_loss:.4f} "
            f"error {percent(epoch.val_error, 1):>6}  {epoch.images_per_second:>7,.0f} img/s",
            soft_wrap=True,
        )
