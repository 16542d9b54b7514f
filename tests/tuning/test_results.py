"""The trial that is selected."""

from resnet_ops.tuning.results import Trial, select_trial


def trial(number: int, accuracy: float | None, parameters: int, status: str = "finished") -> Trial:
    return Trial.model_validate(
        {
            "id": number, "options": {}, "model": f"resnet{number}", "depth": number, "lr": 0.1, "status": status,
            "parameters": parameters, "val_accuracy": accuracy,
        }
    )  # fmt: skip


def test_of_a_tie_the_smaller_network_is_selected_and_the_reason_says_so() -> None:
    trials = [trial(1, 0.990, 300), trial(2, 0.986, 200), trial(3, 0.970, 100)]
    selected = select_trial(trials, 360)  # one standard error of 0.990: 0.52 points
    assert selected is not None
    assert selected.trial.id == 2
    assert "smallest network within one standard error (0.52%)" in selected.why
    assert "99.00% by trial 1 (resnet1, 300 parameters)" in selected.why


def test_with_many_images_the_same_difference_counts() -> None:
    selected = select_trial([trial(1, 0.990, 300), trial(2, 0.986, 200)], 10_000)
    assert selected is not None
    assert selected.trial.id == 1
    assert "highest accuracy of 2 trials (standard error 0.10%)" in selected.why


def test_a_larger_network_that_ties_is_named() -> None:
    selected = select_trial([trial(1, 0.990, 300), trial(2, 0.990, 900)], 360)
    assert selected is not None
    assert selected.trial.id == 1
    assert "; 1 larger within one standard error" in selected.why


def test_trials_that_failed_or_never_validated_are_not_selected() -> None:
    assert select_trial([], 10) is None
    assert select_trial([trial(1, None, 1, "failed"), trial(2, None, 1, "running")], 10) is None
    selected = select_trial([trial(1, None, 1, "failed"), trial(2, 0.5, 9, "stopped")], 10)
    assert selected is not None
    assert selected.trial.id == 2
