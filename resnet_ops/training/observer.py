"""Who is told what a training job does. Apart from `job`, so that a screen is up before torch is."""

from typing import Any

from resnet_ops.runs import Epoch, Run, RunRecord


class Observer:
    """Told what a job does, from a thread of its own; does nothing, for others to override."""

    def run_created(self, run: Run, record: RunRecord) -> None:
        """The request was found sound, and the run directory is there."""

    def notice(self, message: str) -> None:
        """Something the user should know, e.g. that a damaged checkpoint was passed over."""

    def progress(self, progress: dict[str, Any]) -> None:
        """progress.json changed."""

    def epoch_done(self, epoch: Epoch) -> None:
        """An epoch was trained, validated and saved."""
