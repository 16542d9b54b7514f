"""The pictures of a search and the page around them, at any moment of it: tune.png and tune.html."""

from typing import Any

from resnet_ops import files
from resnet_ops.reporting import page, style
from resnet_ops.reporting.search_data import SearchData, error
from resnet_ops.reporting.search_figures import pictures
from resnet_ops.tuning.results import Search, TrialStatus

STATUSES: tuple[TrialStatus, ...] = ("finished", "stopped", "failed", "running")


def draw(search: Search) -> None:
    """Draw what a search has found so far into `search.picture` and `search.page`.

    Raises:
        UserError: It is no search, or a file of it is damaged.
        PausedError: The disk is full, or the bucket is out of reach; the old pictures are still there.
    """
    found = SearchData.read(search)
    drawn = pictures(found)
    files.write_atomically(search.picture, page.join_pictures(drawn))
    with style.applied():
        charts = [(picture, picture.svg()) for picture in drawn]
    files.write_atomically(search.page, page.render("search.html.j2", charts=charts, **_values(found)))


def _values(found: SearchData) -> dict[str, Any]:
    record, best = found.record, found.answer
    shared = record.config.model_dump(mode="json")
    return {
        "record": record,
        "answer": best,
        "error": None if best is None else error(best.trial),
        "counts": [(status, len(there)) for status in STATUSES if (there := found.with_status(status))],
        "trials": found.trials,
        "others": list(found.others),
        "seconds": sum(trial.seconds for trial in found.trials),
        "configurations": [
            ("Search", {name: value for name, value in shared.items() if name != "given"} | shared["given"]),
            *([("Selected trial", found.best_run.config.model_dump(mode="json"))] if found.best_run else []),
        ],
        "versions": record.versions,
    }
