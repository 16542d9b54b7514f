"""Which classes are named as the worst, and how a metric is written."""

import pytest

from resnet_ops.class_metrics import MajorityBaseline, metric_text, worst_classes
from resnet_ops.significance import wilson_interval


def test_classes_below_the_accuracy_beyond_chance_are_named_the_worst_first() -> None:
    counts = [(98, 100), (60, 100), (99, 100), (2, 6), (0, 0), (55, 60)]
    names = ["a", "b", "c", "few", "none", "d"]
    worst = worst_classes(names, counts)
    assert [(each.name, each.support) for each in worst] == [("few", 6), ("b", 100)]
    assert worst[1].recall == 0.6
    assert worst[1].interval == wilson_interval(0.6, 100)
    assert worst_classes([*"abcdefghij"], [(1, 50)] * 7 + [(50, 50)] * 3)[0].name == "a"
    assert len(worst_classes([*"abcdefghij"], [(1, 50)] * 7 + [(50, 50)] * 3)) == 5


@pytest.mark.parametrize(
    "counts", [[(10, 10), (10, 10)], [(9, 10), (10, 10)], [(5, 10), (5, 10)], [(0, 0), (0, 0)], []]
)
def test_where_chance_explains_all_nothing_is_said(counts: list[tuple[int, int]]) -> None:
    assert worst_classes(["a", "b"], counts) == ()


def test_a_metric_is_named_with_its_value() -> None:
    assert metric_text("macro-f1", 0.912) == "macro F1 91.20%"
    assert metric_text("loss", 0.12345) == "loss 0.1235"


@pytest.mark.parametrize(
    ("counts", "warning"),
    [
        ([(5, 5), (0, 5), (0, 5), (0, 5)], "no better than always answering one class (25.00%). Try."),
        ([(20, 20), (0, 1)], "no better than always answering one class (95.24%). Try."),
        ([(0, 20), (1, 1)], "no better than always answering one class (95.24%). Try."),
        (
            [(20, 20), (1, 1)],
            "better than always answering one class (95.24%) by no more than chance: 21 images are too few to "
            "tell. Try.",
        ),
        ([(40, 50), (40, 50)], ""),
    ],
)
def test_always_answering_one_class_is_told_from_learning(counts: list[tuple[int, int]], warning: str) -> None:
    baseline = MajorityBaseline.of(counts, "Try.")
    assert baseline is not None
    assert (baseline.beaten, baseline.warning) == (not warning, warning)
    assert baseline.accuracy == max(support for _, support in counts) / sum(support for _, support in counts)


def test_nothing_is_concluded_from_one_class_or_none() -> None:
    assert MajorityBaseline.of(()) is None
    assert MajorityBaseline.of([(7, 10), (0, 0)]) is None
