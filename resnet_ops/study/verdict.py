"""Conclusions from a study's numbers, in a sentence or two, and no more than the numbers show.

A network's error is higher than another's if every seed's is, and the means differ by more than the number of images
explains, among all pairs of networks (`resnet_ops.significance`): as the seeds of a network are tested on the same
images, their mean counts as one result. Anything else is called not distinguishable.
"""

import functools
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

from resnet_ops.formatting import percent
from resnet_ops.reporting.study_figures import When
from resnet_ops.run_records import DataRecord
from resnet_ops.significance import MeasuredAccuracy, compare
from resnet_ops.study.results import KINDS, Network, NetworkGroup, NetworkKind, Spread

NEGLIGIBLE = 0.1  # relative difference below which two numbers are called about the same
VANISHING = 100  # ratio between first and last layers from which gradients are called vanishing or exploding

DegradedPair = tuple[NetworkGroup, NetworkGroup]  # a network, and the shallower one with the least training error
IsHigher = Callable[[NetworkGroup, NetworkGroup], bool]  # whether the first one's error is higher than the other's


def degradation(groups: Sequence[NetworkGroup], data: DataRecord) -> list[str]:
    """Say whether deeper networks end with more training error than shallower ones, by kind of network."""
    of_kind = {kind: [g for g in groups if g.kind == kind] for kind in KINDS}
    compared = [group for members in of_kind.values() for group in members]
    train_is_higher = higher_errors(compared, lambda group: group.train_error, data.train_images)
    val_is_higher = higher_errors(compared, lambda group: group.val_error, data.val_images)
    degraded = {kind: _degraded(members, train_is_higher) for kind, members in of_kind.items()}
    sentences = [
        _errors(kind, members, degraded[kind], val_is_higher) for kind, members in of_kind.items() if len(members) > 1
    ]
    if baselines := [g for g in groups if g.kind == "baseline"]:
        ends = ", ".join(f"{g.model} {range_of(g.val_error)}" for g in baselines)
        sentences.append(f"Validation error of earlier architectures, trained the same way: {ends}.")
    return [_summary(of_kind, degraded), *sentences, seeds(groups)]


def shortcuts(groups: Sequence[NetworkGroup], data: DataRecord) -> list[str]:
    """Say which shortcuts end with the lowest validation error, at each depth."""
    sentences = []
    is_higher = higher_errors(groups, lambda group: group.val_error, data.val_images)
    for depth in sorted({g.depth for g in groups}):
        best, *others = sorted((g for g in groups if g.depth == depth), key=lambda g: g.val_error.mean)
        higher = [g for g in others if is_higher(g, best)]
        similar = [g for g in others if g not in higher]
        line = f"resnet{depth}: {best.shortcut} has the lowest validation error, {range_of(best.val_error)}"
        if higher:
            line += "; higher: " + ", ".join(f"{g.shortcut} {range_of(g.val_error)}" for g in higher)
        if similar:
            line += "; not distinguishable: " + ", ".join(f"{g.shortcut} {range_of(g.val_error)}" for g in similar)
        sentences.append(f"{line}.")
    return [*sentences, seeds(groups)]


def responses(groups: Sequence[NetworkGroup]) -> list[str]:
    """Say whether residual networks' responses are smaller than plain ones', and smaller the deeper they are."""
    learned = [group for group in groups if has_learned(group)]
    deviation = {(g.kind, g.depth): spread for g in learned if (spread := over_seeds(g, _response_std))}
    trained, initial = (
        {g.depth: spread for g in learned if (spread := over_seeds(g, functools.partial(_branch_ratio, when=when)))}
        for when in get_args(When)[::-1]
    )
    residual = {depth: spread for (kind, depth), spread in deviation.items() if kind == "resnet"}
    sentences = []
    if len(trained) > 1:
        sentences.append(
            "The standard deviation of a residual branch relative to its shortcut, after training, "
            f"{_trend(list(trained.values()))} as depth grows: {_by_depth(trained)}; "
            f"before training: {_by_depth(initial)}."
        )
    if len(residual) > 1:
        sentences.append(
            f"The standard deviation of all residual layers' responses {_trend(list(residual.values()))}: "
            f"{_by_depth(residual)}."
        )
    for depth, spread in residual.items():
        if plain := deviation.get(("plain", depth)):
            comparison = f"{_compared(spread, plain)} that of the plain network, {_short(plain)}"
            sentences.append(f"At depth {depth} it is {comparison}.")
    if left_out := [group.model for group in groups if group not in learned]:
        sentences.append(
            f"{' and '.join(left_out)} did not learn (training error of 50% or more) and are not compared."
        )
    return [*sentences, seeds(groups)]


def gradients(groups: Sequence[NetworkGroup]) -> str:
    """Say how gradients in the first layers of the deepest networks compare with those in the last."""
    deepest = [max((g for g in groups if g.kind == kind), key=lambda g: g.depth, default=None) for kind in KINDS]
    sentences = []
    moments: dict[When, str] = {"initial": "At initialization", "trained": "After training"}
    for when, opening in moments.items():
        ratios = [(g.model, over_seeds(g, functools.partial(_gradient_ratio, when=when))) for g in deepest if g]
        results = [f"in {model} {_short(ratio)}, {_trend_of_gradients(ratio)}" for model, ratio in ratios if ratio]
        if results:
            sentences.append(f"{opening} {'; '.join(results)}.")
    if not sentences:
        return ""
    return " ".join(["Ratio of gradient norms, first tenth of the layers to last tenth.", *sentences])


def failures(networks: Sequence[Network]) -> list[str]:
    """List the trainings that failed, and why."""
    total = Counter(network.model for network in networks)
    failed = [network for network in networks if network.status == "failed"]
    sentences = []
    for model, count in Counter(network.model for network in failed).items():
        reasons = dict.fromkeys(network.reason.rstrip(".") for network in failed if network.model == model)
        sentences.append(f"{count} of {total[model]} training runs of {model} failed: {'; '.join(reasons)}.")
    return sentences


def has_learned(group: NetworkGroup) -> bool:
    """Return whether most training images are classified correctly in the end."""
    return group.train_error.mean < 0.5


def higher_errors(groups: Sequence[NetworkGroup], error: Callable[[NetworkGroup], Spread], images: int) -> IsHigher:
    """Return whether one's error is higher than another's by more than seeds and the number of images explain.

    Args:
        groups: All that are compared.
        error: Of each.
        images: That it is measured on.
    """
    tests = compare({(g.model, g.shortcut): MeasuredAccuracy.of(error(g).mean, images) for g in groups})

    def is_higher(one: NetworkGroup, other: NetworkGroup) -> bool:
        every_seed = error(one).least > error(other).greatest
        return every_seed and tests.differ((one.model, one.shortcut), (other.model, other.shortcut))

    return is_higher


def seeds(groups: Sequence[NetworkGroup]) -> str:
    """Say over how many seeds the numbers are, and what cannot be known from one."""
    counts = sorted({len(g.networks) for g in groups})
    if counts == [1]:
        return "One seed per network, so the variation between seeds is unknown."
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Means of {number} seeds, with the range (minimum to maximum) where seeds differ."


def range_of(spread: Spread) -> str:
    """Return an error in percent, with its range if seeds differ visibly."""
    mean, least, greatest = (percent(value, 1) for value in (spread.mean, spread.least, spread.greatest))
    return mean if spread.std is None or least == greatest else f"{mean} ({least} to {greatest})"


def over_seeds(group: NetworkGroup, measure: Callable[[Network], float | None]) -> Spread | None:
    """Return the spread of a number over a group's trainings; None if none has it."""
    values = [value for network in group.networks if (value := measure(network)) is not None]
    return Spread.of(values) if values else None


def _degraded(groups: Sequence[NetworkGroup], is_higher: IsHigher) -> list[DegradedPair]:
    """Return networks whose training error is higher than a shallower one's, each with the best shallower one."""
    pairs = []
    for index, group in enumerate(groups):
        if index:
            least = min(groups[:index], key=lambda g: g.train_error.mean)
            if is_higher(group, least):
                pairs.append((group, least))
    return pairs


def _summary(of_kind: dict[NetworkKind, list[NetworkGroup]], degraded: dict[NetworkKind, list[DegradedPair]]) -> str:
    compared = [kind for kind in KINDS if len(of_kind[kind]) > 1]
    if not compared:
        return "Nothing to compare: no kind of network has two depths."
    names = {kind: f"{KINDS[kind]} networks" for kind in compared}
    others = [names[kind] for kind in compared if not degraded[kind]]
    degrading = sorted((kind for kind in compared if degraded[kind]), key=lambda kind: degraded[kind][0][0].depth)
    if not degrading:
        return f"No degradation of {' or '.join(others)} at these depths."
    clauses = [f"{names[kind]} {_onset(degraded[kind])}" for kind in degrading]
    line = "; ".join([*clauses, *(f"{name} do not" for name in others)])
    return f"{line[0].upper()}{line[1:]}."


def _onset(pairs: Sequence[DegradedPair]) -> str:
    largest = max(group.train_error.mean - least.train_error.mean for group, least in pairs)
    first, _ = pairs[0]
    return f"degrade from depth {first.depth}, by up to {100 * largest:.1f} percentage points of training error"


def _errors(
    kind: NetworkKind, groups: Sequence[NetworkGroup], degraded: list[DegradedPair], is_higher: IsHigher
) -> str:
    """List the training errors behind the conclusion, and say whether validation errors agree."""
    if not degraded:
        listed = ", ".join(f"{g.model} {range_of(g.train_error)}" for g in groups)
        return f"Training error, {KINDS[kind]}: {listed}; none is significantly above that of a shallower network."
    _, least = degraded[0]
    listed = ", ".join(f"{g.model} {range_of(g.train_error)}" for g in groups if g.depth >= least.depth)
    agreeing = [g.depth for g, least in degraded if is_higher(g, least)]
    depths = "" if len(agreeing) == len(degraded) else f" at depth {' and '.join(map(str, agreeing))}"
    validation = f"validation error degrades too{depths}" if agreeing else "validation error does not degrade"
    return f"Training error, {KINDS[kind]}: {listed}; {validation}."


def _branch_ratio(network: Network, when: When) -> float | None:
    layers = getattr(network.layers, when) if network.layers else ()
    ratios = [layer.of_shortcut for layer in layers if layer.of_shortcut is not None]
    return statistics.fmean(ratios) if ratios else None


def _response_std(network: Network) -> float | None:
    layers = network.layers.trained if network.layers else ()
    return statistics.fmean(layer.response_std for layer in layers) if layers else None


def _trend_of_gradients(ratio: Spread) -> str:
    """Name what happens to gradients on their way from the last layers to the first."""
    if ratio.greatest < 1 / VANISHING:
        return "vanishing"
    if ratio.least > VANISHING:
        return "exploding"
    neither = ratio.least >= 1 / VANISHING and ratio.greatest <= VANISHING
    return "neither vanishing nor exploding" if neither else "varying between seeds"


def _gradient_ratio(network: Network, when: When) -> float | None:
    if network.layers is None:
        return None
    gradients = [layer.weight_gradient for layer in getattr(network.layers, when)]
    tenth = max(len(gradients) // 10, 1)
    first, last = (statistics.fmean(part) for part in (gradients[:tenth], gradients[-tenth:]))
    return first / last if last else None


def _trend(spreads: Sequence[Spread]) -> str:
    """Name the trend of numbers as depth grows: all seeds must agree, and less than a tenth is hardly a change."""
    if max(s.mean for s in spreads) < (1 + NEGLIGIBLE) * min(s.mean for s in spreads):
        return "hardly changes"
    falls = all(deeper.greatest < shallower.least for shallower, deeper in itertools.pairwise(spreads))
    return "falls" if falls else "does not fall monotonically"


def _compared(spread: Spread, other: Spread) -> str:
    if max(spread.mean, other.mean) < (1 + NEGLIGIBLE) * min(spread.mean, other.mean):
        return "about the same as"
    if spread.greatest < other.least:
        return "smaller than"
    return "larger than" if spread.least > other.greatest else "not distinguishable from"


def _by_depth(spreads: dict[int, Spread]) -> str:
    return ", ".join(f"{_short(spread)} in resnet{depth}" for depth, spread in spreads.items())


def _short(spread: Spread) -> str:
    mean = f"{spread.mean:.2g}"
    return mean if spread.std is None else f"{mean} ({spread.least:.2g} to {spread.greatest:.2g})"
