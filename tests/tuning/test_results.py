"""Which trial is the answer."""

from resnet_ops.tuning.results import Trial, select


def trial(number: int, accuracy: float | None, parameters: int, status: str = "finished") -> Trial:
    return Trial.model_validate(
        {
            "id": number, "options": {}, "model": f"resnet{number}", "depth": number, "lr": 0.1, "status": status,
            "parameters": parameters, "val_accuracy": accuracy,
        }
    )  # fmt: skip


def test_of_a_tie_the_smaller_network_is_taken_and_it_is_said() -> None:
    trials = [trial(1, 0.990, 300), trial(2, 0.986, 200), trial(3, 0.970, 100)]
    found = select(trials, 360)  # one standard error of 0.990: 0.52 points
    assert found is not None
    assert found.trial.id == 2
    assert "smallest network within one standard error (0.52%)" in found.why
    assert "99.00% by trial 1 (resnet1, 300 parameters)" in found.why


def test_with_many_images_the_same_difference_counts() -> None:
    found = select([trial(1, 0.990, 300), trial(2, 0.986, 200)], 10_000)
    assert found is not None
    assert found.trial.id == 1
    assert "highest accuracy of 2 trials (standard error 0.10%)" in found.why


def test_a_larger_network_that_ties_is_named() -> None:
    found = select([trial(1, 0.990, 300), trial(2, 0.990, 900)], 360)
    assert found is not None
    assert found.trial.id == 1
    assert "; 1 larger within one standard error" in found.why


def test_trials_that_failed_or_never_validated_are_no_answer() -> None:
    assert select([], 10) is None
    assert select([trial(1, None, 1, "failed"), trial(2, None, 1, "running")], 10) is None
    found = select([trial(1, None, 1, "failed"), trial(2, 0.5, 9, "stopped")], 10)
    assert found is not None
    assert found.trial.id == 2
