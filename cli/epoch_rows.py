"""The rows of a training's epochs, under a header, in as many columns as fit."""

from collections.abc import Callable
from dataclasses import dataclass, field

from resnet_ops.class_metrics import SELECT_NAMES
from resnet_ops.formatting import percent
from resnet_ops.run_records import Epoch, RunRecord

GAP = "  "
BEST, STAR = f"{GAP}best", f"{GAP}   *"  # the last title, and what is under it


@dataclass(frozen=True)
class Column:
    """A column: its title, its width, what it shows of an epoch, and its rank: the highest are left out first."""

    title: str
    width: int
    text: Callable[[Epoch], str]
    rank: int


@dataclass
class EpochRows:
    """Formats the epochs of a run as rows, with a star at each that is the best so far.

    Args:
        record: The run.
        width: Characters that a row may have; None for no limit.
    """

    record: RunRecord
    width: int | None = None
    best: tuple[float, float] | None = None
    columns: list[Column] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = self._all_columns()
        while self.width and len(self.header) > self.width and max(column.rank for column in self.columns):
            self.columns.remove(max(self.columns, key=lambda column: column.rank))

    @property
    def header(self) -> str:
        """The titles."""
        titles = GAP.join(f"{column.title:>{column.width}}" for column in self.columns)
        return titles if self.record.config.fit_all else titles + BEST

    def row(self, epoch: Epoch) -> str:
        """Return the row of the next epoch."""
        score, config = epoch.score(self.record.config.select), self.record.config
        is_best = not config.fit_all and (self.best is None or score > self.best)
        self.best = score if is_best else self.best
        cells = GAP.join(f"{column.text(epoch):>{column.width}}" for column in self.columns)
        return cells + STAR if is_best else cells

    def _all_columns(self) -> list[Column]:
        config = self.record.config
        epochs, metric = config.epochs, config.select if config.select == "macro-recall" else "macro-f1"
        columns = [
            Column("epoch", max(5, 2 * len(str(epochs)) + 1), lambda epoch: f"{epoch.epoch}/{epochs}", 0),
            Column("train loss", 10, lambda epoch: _loss(epoch.train_loss), 3),
            Column("train top-1", 11, lambda epoch: percent(1 - epoch.train_error), 7),
        ]
        if not config.fit_all:
            columns += [
                Column("val loss", 8, lambda epoch: _loss(epoch.val_loss), 2),
                Column("val top-1", 9, lambda epoch: _share(epoch.val_accuracy), 1),
                Column(SELECT_NAMES[metric], 8, lambda epoch: _share(epoch.selected_metric(metric)), 4),
            ]
        return [
            *columns,
            Column("lr", 8, lambda epoch: f"{epoch.lr:.3g}", 6),
            Column("images/s", 8, lambda epoch: f"{epoch.images_per_second:,.0f}", 5),
        ]


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value < 1000 else f"{value:.2e}"
