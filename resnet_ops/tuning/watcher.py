"""Who is told what a search does. Apart from `job`, so that a screen is up before torch is."""

from resnet_ops.orchestration.allocation import Pool
from resnet_ops.training.observer import Observer
from resnet_ops.tuning.results import Search, SearchRecord, Trial


class SearchObserver(Observer):
    """Told what a search does, from a thread of its own; does nothing, for others to override."""

    def search_begun(self, search: Search, record: SearchRecord, pool: Pool) -> None:
        """The request was found sound, and the directory is there."""

    def trial_changed(self, trial: Trial) -> None:
        """A trial began, trained an epoch or ended."""
