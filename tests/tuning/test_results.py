"""The trial that is selected, and the epoch of it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from scipy import stats

from resnet_ops.config import Select, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.run_records import RunRecord
from resnet_ops.runs import Run, summarize
from resnet_ops.significance import MeasuredAccuracy, compare
from resnet_ops.tracking.payload import best_tags
from resnet_ops.tracking.tracker import Tracker
from resnet_ops.training.checkpoint import CheckpointInfo, CheckpointStore, read_best
from resnet_ops.tuning.results import SearchObserver, SelectedTrial, Trial, select_trial
from resnet_ops.tuning.trial import TrialWorker
from resnet_ops.tuning.trial_log import TrialLog
from tests.reporting import samples

INFO = CheckpointInfo(
    model="resnet8", shortcut="A", class_names=("a", "b"), channels=1, height=8, width=8, mean=(0.0,), std=(1.0,),
    data="made", data_fingerprint="0" * 64, metrics=None,
)  # fmt: skip


def record(config: TrainConfig) -> RunRecord:
    now = datetime.now(UTC)
    return RunRecord(
        name="001", status="finished", created=now, updated=now, config=config, data=samples.DATA, parameters=1,
        world_size=1, device="cpu", host="here", versions={},
    )  # fmt: skip


def trial(number: int, accuracy: float | None, parameters: int, status: str = "finished") -> Trial:
    return Trial.model_validate(
        {
            "id": number, "options": {}, "model": f"resnet{number}", "depth": number, "lr": 0.1, "status": status,
            "parameters": parameters, "val_accuracy": accuracy,
        }
    )  # fmt: skip


def select(trials: list[Trial], images: int) -> SelectedTrial | None:
    measured = {t.id: MeasuredAccuracy.of(t.val_accuracy, images) for t in trials if t.val_accuracy is not None}
    return select_trial(trials, compare(measured))


def test_of_a_tie_the_smaller_network_is_selected_and_the_reason_says_so() -> None:
    selected = select([trial(1, 0.990, 300), trial(2, 0.986, 200), trial(3, 0.930, 100)], 360)
    assert selected is not None
    assert selected.trial.id == 2
    assert selected.why == (
        "the smallest network within one standard error of the highest accuracy, 99.00% by trial 1 (resnet1, 300 "
        "parameters)"
    )


def test_without_an_error_a_smaller_network_with_one_error_is_tied() -> None:
    selected = select([trial(1, 1.0, 300), trial(2, 39 / 40, 200)], 40)
    assert selected is not None
    assert selected.trial.id == 2


def test_what_a_newer_version_wrote_of_a_search_is_kept(tmp_path: Path) -> None:
    search = samples.search(tmp_path / "mine")
    stored = json.loads(search.record_file.read_text())
    stored |= {"mood": "good", "config": stored["config"] | {"trials_of_patience": 3}}
    search.record_file.write_text(json.dumps(stored))
    record = search.read()
    assert record.unknown == ("mood", "trials_of_patience")
    search.write(record)
    written = json.loads(search.record_file.read_text())
    assert written | {"space": stored["space"]} == stored  # in the space is a set
    stored |= {"planned": "as many as needed", "versions": {"resnet-ops": "99.0"}}
    search.record_file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"Version 99\.0 of resnet-ops wrote it"):
        search.read()


def test_with_many_images_the_same_difference_counts() -> None:
    selected = select([trial(1, 0.990, 300), trial(2, 0.980, 200)], 10_000)
    assert selected is not None
    assert selected.trial.id == 1
    assert selected.why == "the highest accuracy of 2 trials"


def test_trials_that_chance_may_have_put_below_are_counted() -> None:
    selected = select([trial(1, 0.990, 300), trial(2, 0.990, 900), trial(3, 0.5, 100)], 360)
    assert selected is not None
    assert selected.trial.id == 1
    assert selected.why == (
        "the highest accuracy of 3 trials, not distinguishable from 1 other (Fisher's exact test, corrected for 3 "
        "comparisons)"
    )


def test_trials_that_failed_or_never_validated_are_not_selected() -> None:
    assert select([], 10) is None
    assert select([trial(1, None, 1, "failed"), trial(2, None, 1, "running")], 10) is None
    selected = select([trial(1, None, 1, "failed"), trial(2, 0.5, 9, "stopped")], 10)
    assert selected is not None
    assert selected.trial.id == 2


def test_trials_are_compared_image_by_image_where_their_best_weights_say_which_are_right(tmp_path: Path) -> None:
    right = {1: [True] * 380 + [False] * 20, 2: [True] * 360 + [False] * 40}  # the second's errors include the first's
    trials = [samples.trial(n, f"resnet{6 * n + 2}", [1 - sum(bits) / 400]) for n, bits in right.items()]
    search = samples.search(tmp_path / "s", *trials)
    unpaired = search.compare(search.trials(), 400)
    assert unpaired.tests == "Fisher's exact test"
    for each, _ in trials:
        best = search.trial_run(each).best
        best.mkdir()
        digits = f"{sum(bit << n for n, bit in enumerate(right[each.id])):x}"
        (best / "model.json").write_text(json.dumps({"metrics": {"epoch": 1}, "val_correct": digits}))
    paired = search.compare(search.trials(), 400)
    assert paired.tests == "exact McNemar test"
    assert paired.corrected[frozenset((1, 2))] == pytest.approx(2 * 0.5**20)
    assert unpaired.corrected[frozenset((1, 2))] == pytest.approx(
        stats.fisher_exact([[380, 20], [360, 40]]).pvalue, rel=1e-6
    )


@pytest.mark.parametrize("select", ["top1", "macro-f1", "macro-recall", "loss"])
def test_the_best_epoch_of_ties_is_everywhere_that_of_the_weights_in_best(select: Select, tmp_path: Path) -> None:
    """Of the other metrics other epochs are the best."""
    tied, others = [0.5, 0.2, 0.2, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.05]
    errors = {name: tied if name == select else others for name in ("top1", "macro-f1", "macro-recall")}
    losses = [2, 0.9, 0.7, 0.7, 1]
    epochs = [
        epoch.model_copy(update={"val_loss": loss, "val_macro_f1": 1 - f1, "val_macro_recall": 1 - recall})
        for epoch, loss, f1, recall in zip(
            samples.epochs(errors["top1"]), losses, errors["macro-f1"], errors["macro-recall"], strict=True
        )
    ]
    run = Run(tmp_path / "runs" / "001")
    for folder in (run.checkpoints, run.best):
        folder.mkdir(parents=True)
    store, worker = CheckpointStore(run, num_to_keep=2), object.__new__(TrialWorker)
    config = TrainConfig.of(epochs=5, runs_dir=tmp_path / "runs", select=select)
    run.write(record(config))
    worker.number, worker.best, worker.epoch, worker.seconds, worker.record = 1, None, 0, 0.0, record(config)
    worker.history = []
    tensors = {"model/fc.weight": torch.zeros(2)}
    for epoch in epochs:
        store.save(INFO.model_copy(update={"metrics": epoch, "select": select}), tensors)
        result = worker._epoch_result(epoch)
    best, _ = read_best(run)
    assert best.info.epoch == 3
    (summary,) = summarize(tmp_path / "runs").runs
    assert {
        result["best_epoch"],
        summary.best_epoch,
        int(best_tags(run, run.read_as_written(), epochs)["best_epoch"]),
        json.loads((run.best / "model.json").read_text())["metrics"]["epoch"],
    } == {3}
    assert (result["epoch"], result["planned_epochs"], result["share"], result["done"]) == (5, 5, 1.0, True)


def test_trials_are_selected_by_what_was_asked_for() -> None:
    trials = [
        samples.trial(number, "resnet8", [0.1 * number], metric=metric)[0]
        for number, metric in ((1, 0.5), (2, 0.7), (3, 0.7), (4, None))
    ]
    tests = compare({trial.id: MeasuredAccuracy.of(trial.val_accuracy, 100) for trial in trials})  # type: ignore[arg-type]
    by: dict[Select, int] = {"top1": 1, "macro-f1": 2, "macro-recall": 2, "loss": 1}
    for select, number in by.items():
        selected = select_trial(trials, tests, select)
        assert selected is not None
        assert selected.trial.id == number
    assert select_trial(trials[1:], tests, "macro-f1").why == "the highest validation macro F1 70.00%, of 2 trials"  # type: ignore[union-attr]


def test_a_search_that_goes_on_keeps_the_test_accuracy_of_the_same_weights_alone(tmp_path: Path) -> None:
    trials = [samples.trial(1, "resnet8", [0.3]), samples.trial(2, "resnet8", [0.1])]
    search = samples.search(tmp_path / "s", *trials[:1])
    for (each, epochs), value in zip(trials, (0.0, 1.0), strict=True):
        run = search.trial_run(each)
        for folder in (run.checkpoints, run.best):
            folder.mkdir(parents=True)
        run.write(record(TrainConfig.of(epochs=1)))
        tensors = {"model/fc.weight": torch.full((2,), value)}
        CheckpointStore(run, num_to_keep=1).save(INFO.model_copy(update={"metrics": epochs[0]}), tensors)
    search.run.best.mkdir()
    search.run.write(record(TrainConfig.of(epochs=1)))
    log = TrialLog(search, search.read(), SearchObserver(), Tracker("none", print, str))

    def end() -> float | None:
        log.end_search("interrupted", "")
        best = search.run.read().best
        assert best is not None
        return best.test_accuracy

    assert end() is None
    ended = search.run.read()
    assert ended.best is not None
    search.run.write(ended.model_copy(update={"best": ended.best.model_copy(update={"test_accuracy": 0.5})}))
    assert end() == 0.5
    log.trials[2] = trials[1][0]
    assert end() is None
