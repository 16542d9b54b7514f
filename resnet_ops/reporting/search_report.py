"""The report on a search, at any moment of it: the picture tune.png and the page tune.html."""

from typing import Any

from resnet_ops import files
from resnet_ops.class_metrics import metric_text
from resnet_ops.reporting import page, style
from resnet_ops.reporting.search_data import SearchData, error
from resnet_ops.reporting.search_figures import pictures
from resnet_ops.tuning.results import Search, TrialStatus

STATUSES: tuple[TrialStatus, ...] = ("finished", "stopped", "failed", "running")


def draw(search: Search) -> None:
    """Draw the results of a search so far into `search.picture` and `search.page`.

    Raises:
        UserError: It is not a search, or a file of it is damaged.
        PausedError: The disk is full, or the bucket is out of reach; the old files are kept.
    """
    data = SearchData.read(search)
    drawn = pictures(data)
    files.write_atomically(search.picture, page.join_pictures(drawn))
    with style.applied():
        charts = [(picture, picture.svg()) for picture in drawn]
    files.write_atomically(search.page, page.render("search.html.j2", charts=charts, **_values(data)))


def _values(data: SearchData) -> dict[str, Any]:
    record, selection = data.record, data.selection
    shared = record.config.model_dump(mode="json")
    return {
        "record": record,
        "metric_text": metric_text,
        "selection": selection,
        "test_accuracy": data.test_accuracy,
        "measured_images": data.measured_images,
        "error": None if selection is None else error(selection.trial),
        "counts": [(status, len(trials)) for status in STATUSES if (trials := data.with_status(status))],
        "trials": data.trials,
        "others": list(data.others),
        "seconds": sum(trial.seconds for trial in data.trials),
        "configurations": [
            ("Search", {name: value for name, value in shared.items() if name != "given"} | shared["given"]),
            *([("Selected trial", data.selected_run.config.model_dump(mode="json"))] if data.selected_run else []),
        ],
        "versions": record.versions,
    }
