"""What a study's numbers show, in a sentence or two, and no more than that.

One network's error counts as above another's if every seed's is, and the means differ by more than two standard
errors of a share of so many images. What overlaps is called so.
"""

import functools
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

from resnet_ops.formatting import percent
from resnet_ops.records import DataRecord
from resnet_ops.reporting.study_figures import When
from resnet_ops.significance import OVER_SEEDS, differs
from resnet_ops.study.results import KINDS, Kind, Network, NetworkGroup, Spread

LITTLE = 0.1  # of a number, below which nothing is said of a difference
MANY = 100  # times between first and last layers from which gradients are said to vanish or to grow


def degradation(groups: Sequence[NetworkGroup], data: DataRecord) -> str:
    """Whether deeper networks end with more training error than shallower ones, and residual ones too."""
    of_kind = {kind: [g for g in groups if g.kind == kind] for kind in KINDS}
    worse = {kind: _worse(found, data) for kind, found in of_kind.items()}
    told = [_numbers(kind, found, worse[kind], data) for kind, found in of_kind.items() if len(found) > 1]
    if beside := [g for g in groups if g.kind == "baseline"]:
        ends = ", ".join(f"{g.model} {range_of(g.val_error)}" for g in beside)
        told.append(f"Validation error of earlier architectures, trained the same way: {ends}.")
    return " ".join([_in_short(of_kind, worse), *told, seeds(groups)])


def shortcuts(groups: Sequence[NetworkGroup], data: DataRecord) -> str:
    """Which shortcuts end with the least validation error."""
    told = []
    for depth in sorted({g.depth for g in groups}):
        found = sorted((g for g in groups if g.depth == depth), key=lambda g: g.val_error.mean)
        best, *others = found
        behind = [g for g in others if above(g.val_error, best.val_error, data.val_images)]
        beside = [g for g in others if g not in behind]
        line = f"resnet{depth}: {best.shortcut} has the lowest validation error, {range_of(best.val_error)}"
        if behind:
            line += "; higher: " + ", ".join(f"{g.shortcut} {range_of(g.val_error)}" for g in behind)
        if beside:
            line += "; not distinguishable: " + ", ".join(f"{g.shortcut} {range_of(g.val_error)}" for g in beside)
        told.append(f"{line}.")
    return " ".join([*told, seeds(groups)])


def responses(groups: Sequence[NetworkGroup]) -> str:
    """Whether residual networks' responses are smaller than plain ones', and smaller the deeper they are."""
    learned = [group for group in groups if has_learned(group)]
    deviation = {(g.kind, g.depth): found for g in learned if (found := over(g, _response))}
    of_shortcut, before = (
        {g.depth: found for g in learned if (found := over(g, functools.partial(_branch, when=when)))}
        for when in get_args(When)[::-1]
    )
    residual = {depth: found for (kind, depth), found in deviation.items() if kind == "resnet"}
    told = []
    if len(of_shortcut) > 1:
        told.append(
            "The standard deviation of a residual branch relative to its shortcut, after training, "
            f"{_trend(list(of_shortcut.values()))} as depth grows: {_listed(of_shortcut)}; "
            f"before training: {_listed(before)}."
        )
    if len(residual) > 1:
        told.append(
            f"The standard deviation of all residual layers' responses {_trend(list(residual.values()))}: "
            f"{_listed(residual)}."
        )
    for depth, found in residual.items():
        if plain := deviation.get(("plain", depth)):
            told.append(f"At depth {depth} it is {_beside(found, plain)} that of the plain network, {_short(plain)}.")
    if left_out := [group.model for group in groups if group not in learned]:
        told.append(f"{' and '.join(left_out)} did not learn (training error of 50% or more) and are not compared.")
    return " ".join([*told, seeds(groups)])


def has_learned(group: NetworkGroup) -> bool:
    """Whether most training images are told right in the end."""
    return group.train_error.mean < 0.5


def gradients(groups: Sequence[NetworkGroup]) -> str:
    """How the gradients of the deepest networks' first layers compare with those of their last ones."""
    deepest = [max((g for g in groups if g.kind == kind), key=lambda g: g.depth, default=None) for kind in KINDS]
    told = []
    moments: dict[When, str] = {"initial": "At initialisation", "trained": "After training"}
    for when, words in moments.items():
        ratios = [(g.model, over(g, functools.partial(_first_to_last, when=when))) for g in deepest if g]
        there = [f"in {model} {_short(ratio)}, {_way(ratio)}" for model, ratio in ratios if ratio]
        if there:
            told.append(f"{words} {'; '.join(there)}.")
    if not told:
        return ""
    return " ".join(["Ratio of gradient norms, first tenth of the layers to last tenth.", *told])


def failures(networks: Sequence[Network]) -> str:
    """Which trainings are not among the numbers, and why."""
    every = Counter(network.model for network in networks)
    failed = [network for network in networks if network.status == "failed"]
    told = []
    for model, count in Counter(network.model for network in failed).items():
        reasons = dict.fromkeys(network.reason.rstrip(".") for network in failed if network.model == model)
        told.append(f"{count} of {every[model]} trainings of {model} failed: {'; '.join(reasons)}.")
    return " ".join(told)


def above(one: Spread, other: Spread, images: int) -> bool:
    """Whether an error is above another by more than seeds and the number of images explain."""
    return one.least > other.greatest and differs(one.mean, other.mean, images, OVER_SEEDS)


def seeds(groups: Sequence[NetworkGroup]) -> str:
    """Over how many seeds that is, and what follows where it is one."""
    counts = sorted({len(g.networks) for g in groups})
    if counts == [1]:
        return "One seed per network, so the variation between seeds is unknown."
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Means of {many} seeds, with the range (minimum to maximum) where seeds differ."


def range_of(spread: Spread) -> str:
    """An error in percent, with its range where there is one to be seen."""
    mean, least, greatest = (percent(value, 1) for value in (spread.mean, spread.least, spread.greatest))
    return mean if spread.std is None or least == greatest else f"{mean} ({least} to {greatest})"


def over(group: NetworkGroup, number: Callable[[Network], float | None]) -> Spread | None:
    """A number of each training over seeds; None where none has it."""
    values = [value for network in group.networks if (value := number(network)) is not None]
    return Spread.of(values) if values else None


def _worse(groups: Sequence[NetworkGroup], data: DataRecord) -> list[tuple[NetworkGroup, NetworkGroup]]:
    """Networks whose training error is above that of a shallower one, and the shallower one with the least."""
    found = []
    for index, group in enumerate(groups):
        if index:
            least = min(groups[:index], key=lambda g: g.train_error.mean)
            if above(group.train_error, least.train_error, data.train_images):
                found.append((group, least))
    return found


def _in_short(
    of_kind: dict[Kind, list[NetworkGroup]], worse: dict[Kind, list[tuple[NetworkGroup, NetworkGroup]]]
) -> str:
    compared = [kind for kind in KINDS if len(of_kind[kind]) > 1]
    if not compared:
        return "Nothing to compare: no kind of network has two depths."
    names = {kind: f"{KINDS[kind]} networks" for kind in compared}
    fine = [names[kind] for kind in compared if not worse[kind]]
    degraded = sorted((kind for kind in compared if worse[kind]), key=lambda kind: worse[kind][0][0].depth)
    if not degraded:
        return f"No degradation of {' or '.join(fine)} at these depths."
    told = [f"{names[kind]} degrade from depth {worse[kind][0][0].depth}, {_by(worse[kind])}" for kind in degraded]
    line = "; ".join([*told, *(f"{name} do not" for name in fine)])
    return f"{line[0].upper()}{line[1:]}."


def _by(worse: Sequence[tuple[NetworkGroup, NetworkGroup]]) -> str:
    most = max(group.train_error.mean - least.train_error.mean for group, least in worse)
    return f"by up to {100 * most:.1f} percentage points of training error"


def _numbers(
    kind: Kind, groups: Sequence[NetworkGroup], worse: list[tuple[NetworkGroup, NetworkGroup]], data: DataRecord
) -> str:
    """The training errors that this rests on, and whether validation agrees."""
    if not worse:
        listed = ", ".join(f"{g.model} {range_of(g.train_error)}" for g in groups)
        return f"Training error, {KINDS[kind]}: {listed}; none is significantly above that of a shallower network."
    _, least = worse[0]
    listed = ", ".join(f"{g.model} {range_of(g.train_error)}" for g in groups if g.depth >= least.depth)
    agrees = [g.depth for g, s in worse if above(g.val_error, s.val_error, data.val_images)]
    where = "" if len(agrees) == len(worse) else f" at depth {' and '.join(map(str, agrees))}"
    too = f"validation error degrades too{where}" if agrees else "validation error does not degrade"
    return f"Training error, {KINDS[kind]}: {listed}; {too}."


def _branch(network: Network, when: When) -> float | None:
    layers = getattr(network.layers, when) if network.layers else ()
    shares = [layer.of_shortcut for layer in layers if layer.of_shortcut is not None]
    return statistics.fmean(shares) if shares else None


def _response(network: Network) -> float | None:
    layers = network.layers.trained if network.layers else ()
    return statistics.fmean(layer.response_std for layer in layers) if layers else None


def _way(ratio: Spread) -> str:
    """What becomes of gradients on their way back."""
    if ratio.greatest < 1 / MANY:
        return "vanishing"
    if ratio.least > MANY:
        return "exploding"
    even = ratio.least >= 1 / MANY and ratio.greatest <= MANY
    return "neither vanishing nor exploding" if even else "varying between seeds"


def _first_to_last(network: Network, when: When) -> float | None:
    if network.layers is None:
        return None
    gradients = [layer.weight_gradient for layer in getattr(network.layers, when)]
    tenth = max(len(gradients) // 10, 1)
    first, last = (statistics.fmean(part) for part in (gradients[:tenth], gradients[-tenth:]))
    return first / last if last else None


def _trend(spreads: Sequence[Spread]) -> str:
    """What numbers do from the first to the last: seeds must agree, and a tenth is the least to speak of."""
    if max(s.mean for s in spreads) < (1 + LITTLE) * min(s.mean for s in spreads):
        return "hardly changes"
    falls = all(deeper.greatest < shallower.least for shallower, deeper in itertools.pairwise(spreads))
    return "falls" if falls else "does not fall monotonically"


def _beside(one: Spread, other: Spread) -> str:
    if max(one.mean, other.mean) < (1 + LITTLE) * min(one.mean, other.mean):
        return "about the same as"
    if one.greatest < other.least:
        return "smaller than"
    return "larger than" if one.least > other.greatest else "not distinguishable from"


def _listed(by_depth: dict[int, Spread]) -> str:
    return ", ".join(f"{_short(spread)} in resnet{depth}" for depth, spread in by_depth.items())


def _short(spread: Spread) -> str:
    mean = f"{spread.mean:.2g}"
    return mean if spread.std is None else f"{mean} ({spread.least:.2g} to {spread.greatest:.2g})"
