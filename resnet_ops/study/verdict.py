"""What a study's numbers show, in a sentence or two, and no more than that.

One network's error counts as above another's if every seed's is, and the means differ by more than two standard
errors of a share of so many images. What overlaps is called so.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence

from resnet_ops.reporting.study_figures import When
from resnet_ops.runs import DataRecord
from resnet_ops.study.layers import Layer
from resnet_ops.study.results import KINDS, Group, Kind, Network, Spread
from resnet_ops.tuning.results import standard_error

MANY = 100  # times between first and last layers from which gradients are said to vanish or to grow


def degradation(groups: Sequence[Group], data: DataRecord) -> str:
    """Whether deeper networks end with more training error than shallower ones, and residual ones too."""
    of_kind = {kind: [g for g in groups if g.kind == kind] for kind in KINDS}
    worse = {kind: _worse(found, data) for kind, found in of_kind.items()}
    told = [_numbers(kind, found, worse[kind], data) for kind, found in of_kind.items() if len(found) > 1]
    lost = [f"{g.lost} of {g.lost + len(g.networks)} trainings of {g.model} failed" for g in groups if g.lost]
    return " ".join([_in_short(of_kind, worse), *told, *(f"{line}." for line in lost), seeds(groups)])


def shortcuts(groups: Sequence[Group], data: DataRecord) -> str:
    """Which shortcuts end with the least validation error."""
    told = []
    for depth in sorted({g.depth for g in groups}):
        found = sorted((g for g in groups if g.depth == depth), key=lambda g: g.val_error.mean)
        best, *others = found
        behind = [g for g in others if above(g.val_error, best.val_error, data.val_images)]
        beside = [g for g in others if g not in behind]
        line = f"resnet{depth}: {best.shortcut} has the least validation error, {range_of(best.val_error)}"
        if behind:
            line += "; above it " + ", ".join(f"{g.shortcut} {range_of(g.val_error)}" for g in behind)
        if beside:
            line += "; not told apart from it " + ", ".join(f"{g.shortcut} {range_of(g.val_error)}" for g in beside)
        told.append(f"{line}.")
    return " ".join([*told, seeds(groups)])


def responses(groups: Sequence[Group]) -> str:
    """Whether residual networks' responses are smaller than plain ones', and smaller the deeper they are."""
    deviation = {(g.kind, g.depth): over(g, lambda n: _mean(n, lambda layer: layer.response_std)) for g in groups}
    of_shortcut = {g.depth: over(g, lambda n: _mean(n, lambda layer: layer.of_shortcut)) for g in groups}
    depths = sorted({depth for kind, depth in deviation if kind == "resnet" and deviation[kind, depth]})
    told = []
    if len(depths) > 1:
        falls = _falls([deviation["resnet", depth] for depth in depths])
        numbers = ", ".join(f"{_short(deviation['resnet', depth])} in resnet{depth}" for depth in depths)
        told.append(
            f"The residual networks' mean response {'falls' if falls else 'does not steadily fall'} as depth grows: "
            f"its standard deviation after training is {numbers}."
        )
        ratios = [of_shortcut[depth] for depth in depths]
        numbers = ", ".join(f"{_short(ratio)} in resnet{depth}" for depth, ratio in zip(depths, ratios, strict=True))
        way = "tends towards 0" if _falls(ratios) else "does not steadily tend towards 0"
        told.append(f"Beside its shortcut's, a residual branch's deviation {way}: {numbers}.")
    for depth in depths:
        plain, residual = deviation.get(("plain", depth)), deviation["resnet", depth]
        if plain and residual:
            smaller = "smaller than" if residual.greatest < plain.least else "not smaller than"
            told.append(f"At depth {depth} it is {smaller} the plain network's, {_short(plain)}.")
    untrained = [g.model for g in groups if g.train_error.mean > 0.5]
    if untrained:
        told.append(f"{' and '.join(untrained)} hardly learned, so their responses say little.")
    return " ".join([*told, seeds(groups)])


def gradients(groups: Sequence[Group]) -> str:
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
    return " ".join(["Gradient norm of the first tenth of the layers, as a multiple of the last tenth's.", *told])


def above(one: Spread, other: Spread, images: int) -> bool:
    """Whether an error is above another by more than seeds and the number of images explain."""
    noise = math.hypot(standard_error(one.mean, images), standard_error(other.mean, images))
    return one.least > other.greatest and one.mean - other.mean > 2 * noise


def seeds(groups: Sequence[Group]) -> str:
    """Over how many seeds that is, and what follows where it is one."""
    counts = sorted({len(g.networks) for g in groups})
    if counts == [1]:
        return "One seed each, which does not show how much another would differ."
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Means of {many} seeds, with the least and the greatest."


def range_of(spread: Spread) -> str:
    """An error in percent, with its range where there is one."""
    mean = f"{100 * spread.mean:.1f} %"
    return mean if spread.std is None else f"{mean} ({100 * spread.least:.1f} to {100 * spread.greatest:.1f})"


def over(group: Group, number: Callable[[Network], float | None]) -> Spread | None:
    """A number of each training over seeds; None where none has it."""
    values = [value for network in group.networks if (value := number(network)) is not None]
    return Spread.of(values) if values else None


def _worse(groups: Sequence[Group], data: DataRecord) -> list[tuple[Group, Group]]:
    """Networks whose training error is above that of a shallower one, and the shallower one with the least."""
    found = []
    for index, group in enumerate(groups):
        if index:
            least = min(groups[:index], key=lambda g: g.train_error.mean)
            if above(group.train_error, least.train_error, data.train_images):
                found.append((group, least))
    return found


def _in_short(of_kind: dict[Kind, list[Group]], worse: dict[Kind, list[tuple[Group, Group]]]) -> str:
    compared = [kind for kind in KINDS if len(of_kind[kind]) > 1]
    if not compared:
        return "There are no two depths of a kind to compare."
    names = {kind: f"{KINDS[kind]} networks" for kind in compared}
    fine = [names[kind] for kind in compared if not worse[kind]]
    degraded = sorted((kind for kind in compared if worse[kind]), key=lambda kind: worse[kind][0][0].depth)
    if not degraded:
        return f"No degradation at these depths, of {' or '.join(fine)}."
    told = [f"{names[kind]} degrade from depth {worse[kind][0][0].depth} on, {_by(worse[kind])}" for kind in degraded]
    line = "; ".join([*told, *(f"{name} do not" for name in fine)])
    return f"{line[0].upper()}{line[1:]}."


def _by(worse: Sequence[tuple[Group, Group]]) -> str:
    most = max(group.train_error.mean - least.train_error.mean for group, least in worse)
    return f"by up to {100 * most:.1f} points of training error"


def _numbers(kind: Kind, groups: Sequence[Group], worse: list[tuple[Group, Group]], data: DataRecord) -> str:
    """The training errors that this rests on, and whether validation agrees."""
    if not worse:
        listed = ", ".join(f"{g.model} {range_of(g.train_error)}" for g in groups)
        return f"Training error, {KINDS[kind]}: {listed}; none is above a shallower one's."
    _, least = worse[0]
    listed = ", ".join(f"{g.model} {range_of(g.train_error)}" for g in groups if g.depth >= least.depth)
    agrees = [g.depth for g, s in worse if above(g.val_error, s.val_error, data.val_images)]
    where = "" if len(agrees) == len(worse) else f" at depth {' and '.join(map(str, agrees))}"
    too = f"in validation error too{where}" if agrees else "not in validation error"
    return f"Training error, {KINDS[kind]}: {listed}; {too}."


def _mean(network: Network, number: Callable[[Layer], float | None]) -> float | None:
    layers = network.layers.trained if network.layers else ()
    values = [value for layer in layers if (value := number(layer)) is not None]
    return statistics.fmean(values) if values else None


def _way(ratio: Spread) -> str:
    """What becomes of gradients on their way back."""
    if ratio.greatest < 1 / MANY:
        return "they vanish on the way back"
    if ratio.least > MANY:
        return "they grow on the way back"
    even = ratio.least >= 1 / MANY and ratio.greatest <= MANY
    return "they do neither vanish nor explode" if even else "which differs from seed to seed"


def _first_to_last(network: Network, when: When) -> float | None:
    if network.layers is None:
        return None
    gradients = [layer.weight_gradient for layer in getattr(network.layers, when)]
    tenth = max(len(gradients) // 10, 1)
    first, last = (statistics.fmean(part) for part in (gradients[:tenth], gradients[-tenth:]))
    return first / last if last else None


def _falls(spreads: Sequence[Spread | None]) -> bool:
    there = [spread for spread in spreads if spread]
    return all(deeper.greatest < shallower.least for shallower, deeper in itertools.pairwise(there))


def _short(spread: Spread | None) -> str:
    if spread is None:
        return "unknown"
    mean = f"{spread.mean:.2g}"
    return mean if spread.std is None else f"{mean} ({spread.least:.2g} to {spread.greatest:.2g})"
