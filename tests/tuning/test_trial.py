"""A trial that ends early by its own options is done, and is compared as one that trained to its end."""

from pathlib import Path
from typing import Any

from resnet_ops.data.opening import open_source
from resnet_ops.runs import Run
from resnet_ops.tuning.algorithms import METRIC, NUMBER, POINT, SHARE
from resnet_ops.tuning.trial import TrialTask, TrialWorker


def test_a_trial_ends_by_its_own_options(tmp_path: Path) -> None:
    options = {"epochs": 4, "patience": 1, "model": "resnet8", "schedule": "steps"}
    task = TrialTask(str(tmp_path), options, open_source("digits").record, "cpu", threads=1, nodes=1)

    class Worker(TrialWorker):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, task)

    def results() -> list[dict[str, Any]]:
        worker = Worker({POINT: {NUMBER: 1, "lr": 1e-9, "ema": 0.99999}})
        found = [worker.step()]
        while not found[-1]["done"]:
            found.append(worker.step())
        worker.cleanup()
        return found

    *_, last = trained = results()
    epochs = Run(tmp_path / "001").epochs()
    assert len(trained) == len(epochs) < 4
    assert (last["done"], last[SHARE]) == (True, 1.0)
    assert f"ended after epoch {len(epochs)} of 4" in last["ended"]
    assert last[METRIC] == max(1 - epoch.val_error for epoch in epochs if epoch.val_error is not None)
    again = results()  # as in a search that is resumed
    assert again == trained
