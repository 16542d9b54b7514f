"""Every metric is scikit-learn's, or that of its definition written out, on the same predictions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    top_k_accuracy_score,
)

from resnet_ops.evaluation.classification import ClassifiedImages
from resnet_ops.evaluation.evaluation_metrics import check_expectation, measure
from resnet_ops.evaluation.results import EvaluateResult, EvaluationMetrics
from resnet_ops.reliability import calibration_bins
from resnet_ops.significance import wilson_interval

NAMES = ("cat", "dog", "hen", "cow", "pig", "owl", "ant", "bee")  # of which there are no bees, and ants are not found


def classified(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> ClassifiedImages:
    top = torch.from_numpy(probabilities).topk(min(k, probabilities.shape[1]), dim=1)
    loss = -np.log(probabilities[np.arange(len(labels)), labels])
    return ClassifiedImages(np.arange(len(labels)), labels, top.indices.numpy(), top.values.numpy(), loss, (), 0)


@pytest.fixture(scope="module")
def predictions() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of 600 images."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 600)
    logits = random.normal(size=(600, 8)) + 1.5 * np.eye(8)[labels]
    logits[:, 6] -= 9
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels


def assert_metrics_are_those_of_scikit_learn(metrics: EvaluationMetrics, probabilities: np.ndarray, labels: np.ndarray,
                                              names: tuple[str, ...]) -> None:  # fmt: skip
    predicted, numbers = probabilities.argmax(1), np.arange(len(names))
    present = np.unique(labels)
    assert metrics.images == len(labels)
    assert metrics.top1 == pytest.approx(accuracy_score(labels, predicted))
    assert (metrics.top1_low, metrics.top1_high) == wilson_interval(metrics.top1, len(labels))
    assert metrics.top5 == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=numbers))
    assert metrics.macro_recall == pytest.approx(balanced_accuracy_score(labels, predicted))
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    assert metrics.macro_precision == pytest.approx(precision_score(labels, predicted, **macro))
    assert metrics.macro_f1 == pytest.approx(f1_score(labels, predicted, **macro))
    assert metrics.negative_log_likelihood == pytest.approx(log_loss(labels, probabilities, labels=numbers))
    report = classification_report(
        labels, predicted, labels=numbers, target_names=names, output_dict=True, zero_division=np.nan
    )
    for each in metrics.classes:
        expected = report[each.name]
        assert each.images == expected["support"]
        for value, name in ((each.recall, "recall"), (each.precision, "precision"), (each.f1, "f1-score")):
            assert (np.nan if value is None else value) == pytest.approx(expected[name], nan_ok=True)
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    rebuilt = np.diag([each.correct for each in metrics.classes])
    for pair in metrics.confusions:
        rebuilt[names.index(pair.label), names.index(pair.prediction)] = pair.images
    assert (rebuilt == matrix).all()
    assert [each.predicted for each in metrics.classes] == matrix.sum(0).tolist()
    counts = [pair.images for pair in metrics.confusions]
    assert counts == sorted(counts, reverse=True)
    assert metrics.expected_calibration_error == pytest.approx(calibration_error(probabilities, labels))
    confident = probabilities.max(1) >= 0.7
    (level,) = (each for each in metrics.confidence if each.threshold == 0.7)
    assert level.images == confident.sum()
    assert level.accuracy == pytest.approx(accuracy_score(labels[confident], predicted[confident]))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The definition of Guo et al. 2017, sec. 2, image by image."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels, strict=True):
        members[min(int(np.ceil(row.max() * bins)) - 1, bins - 1)].append((row.max(), row.argmax() == label))
    gaps = [abs(sum(c for c, _ in each) - sum(right for _, right in each)) for each in members]
    return float(sum(gaps) / len(labels))


def test_all_metrics_where_a_class_is_missing_and_one_never_predicted(
    predictions: tuple[np.ndarray, np.ndarray],
) -> None:
    probabilities, labels = predictions
    metrics = measure(classified(probabilities, labels), NAMES)
    assert_metrics_are_those_of_scikit_learn(metrics, probabilities, labels, NAMES)
    ant, bee = metrics.classes[6:]
    assert (ant.precision, ant.precision_low, ant.recall, ant.f1) == (None, None, 0, 0)
    assert (bee.images, bee.recall, bee.recall_low) == (0, None, None)
    assert bee.predicted > 0
    owl = metrics.classes[5]
    assert (owl.recall_low, owl.recall_high) == wilson_interval(owl.recall or 0, owl.images)
    assert (owl.precision_low, owl.precision_high) == wilson_interval(owl.precision or 0, owl.predicted)


def test_a_perfect_network_and_one_image() -> None:
    probabilities = np.eye(3)[[0, 1, 1, 2]] * 0.97 + 0.01
    metrics = measure(classified(probabilities, np.array([0, 1, 1, 2])), NAMES[:3])
    assert (metrics.top1, metrics.macro_f1, metrics.confusions, metrics.top5) == (1, 1, (), None)
    assert metrics.top1_low < 1
    assert metrics.expected_calibration_error == pytest.approx(0.02)
    metrics = measure(classified(probabilities[:1], np.array([2])), NAMES[:3])
    assert (metrics.top1, metrics.images, metrics.confusions[0].images) == (0, 1, 1)
    assert metrics.negative_log_likelihood == pytest.approx(-np.log(0.01))


def test_bins_hold_their_upper_end_and_rounding_errors_above_one() -> None:
    confidence = np.array([1 / 15, 1 / 15 + 1e-9, 1 + 1e-12])
    assert [each.images for each in calibration_bins(confidence, np.ones(3, bool))] == [1, 1, *[0] * 12, 1]


@pytest.mark.parametrize(("correct", "met"), [(900, True), (886, True), (885, True), (883, False), (0, False)])
def test_an_expectation_is_missed_beyond_chance_only(correct: int, met: bool) -> None:
    """90% of 1,000: the sum of the binomial's probabilities is the p-value."""
    from scipy.special import comb

    result = check_expectation(90, correct, 1000)
    k = np.arange(correct + 1)
    exact = float((comb(1000, k) * 0.9**k * 0.1 ** (1000 - k)).sum()) if correct > 800 else 0.0
    assert result.p_value == pytest.approx(exact, abs=1e-6)
    assert result.met is met


def test_the_schema_describes_every_field() -> None:
    undescribed = [name for name, info in EvaluateResult.model_fields.items() if not info.description]
    assert undescribed == []
