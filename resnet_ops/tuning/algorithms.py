"""The search itself: which point is tried next, and which trials are stopped, by Ray Tune's own parts."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.variant_generator import generate_variants

from resnet_ops.errors import UserError
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import Choices, Range, Space

METRIC, TIME = "best_val_accuracy", "epoch"
DEFAULT_TRIALS = 12
GRID_STEPS = 5
BALANCED = ("family", "depth")  # drawn equally often rather than at random
POINT, NUMBER = "point", "number"
Point = dict[str, Any]


def planned(config: TuneConfig, space: Space) -> int:
    """How many trials there are to be.

    Raises:
        UserError: A grid has another number than was asked for.
    """
    if space.points:
        return len(space.points)
    if config.search != "grid":
        return config.trials or DEFAULT_TRIALS
    count = 1
    for values in space.searched.values():
        count *= len(_steps(values))
    if config.trials not in (None, count):
        raise UserError(
            f"--trials {config.trials}: the grid has {count} combinations.", "Remove --trials, or use --search random."
        )
    return count


def drawn(config: TuneConfig, space: Space, seed: int) -> list[Point]:
    """The points that are given, of a grid, or of a search at random: the same for the same seed."""
    if space.points:
        return [dict(point) for point in space.points]
    grid = config.search == "grid"
    spec = {
        name: tune.grid_search(_steps(values)) if grid or name in BALANCED else _domain(values)
        for name, values in space.searched.items()
    }
    wanted = planned(config, space)
    points: list[Point] = []
    random = np.random.default_rng(seed)
    while len(points) < wanted:
        points += [_plain(variant) for _, variant in generate_variants(copy.deepcopy(spec), random_state=random)]
    return [space.fixed | point for point in points[:wanted]]


def algorithm(
    config: TuneConfig, space: Space, seed: int, before: Sequence[Point], at_once: int
) -> tuple[SearchAlgorithm | Searcher, dict[str, Any], int]:
    """What chooses points, Tune's description of them, and their number; `before` are those of a resumed search."""
    if config.search == "optuna":
        return ConcurrencyLimiter(_numbered_optuna(space, seed, before), at_once), {}, planned(config, space)
    points = drawn(config, space, seed)
    points[: len(before)] = before
    return BasicVariantGenerator(max_concurrent=at_once), {POINT: tune.grid_search(points)}, 1


def number_of(trial_id: str, point: Point) -> int:
    """A trial's number, from 1: in the point where it was suggested, else that of Tune's own count.

    Not in the point of every trial, for PBT copies whole points from trial to trial.
    """
    return int(point.get(NUMBER) or int(trial_id.rpartition("_")[2]) + 1)


def scheduler(config: TuneConfig, space: Space, epochs: int) -> TrialScheduler:
    """What stops trials.

    Raises:
        UserError: It cannot be had with what is searched.
    """
    grace = min(config.grace or -(-epochs // 2), epochs)
    if config.scheduler == "asha":
        return AsyncHyperBandScheduler(time_attr=TIME, max_t=epochs, grace_period=grace, reduction_factor=2)
    if config.scheduler == "median":
        return MedianStoppingRule(time_attr=TIME, grace_period=grace, min_samples_required=3)
    if config.scheduler == "pbt":
        return _population(config, space, max(1, grace // 2))
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def _population(config: TuneConfig, space: Space, interval: int) -> TrialScheduler:
    networks = {"depth", "family", "model", "shortcut"} & set(space.searched)
    if networks:
        raise UserError(
            "--scheduler pbt copies weights between trials, so all must be the same network: "
            f"{', '.join(sorted(networks))} cannot be searched.",
            "Give one depth, such as --depths 20, or use --scheduler asha.",
        )
    if config.search != "random" or config.nodes_per_trial > 1:
        raise UserError(
            "--scheduler pbt changes the options itself and trains each trial on one node.",
            "Remove --search and --nodes-per-trial.",
        )
    mutations = {name: _domain(values) for name, values in space.searched.items()}
    return PopulationBasedTraining(
        time_attr=TIME,
        perturbation_interval=interval,
        burn_in_period=interval,
        hyperparam_mutations={POINT: mutations},
        custom_explore_fn=lambda changed: _within(changed, space),
        log_config=False,
    )


def _within(config: dict[str, Any], space: Space) -> dict[str, Any]:
    """PBT multiplies by 0.8 and 1.2, across the ends of a range."""
    for name, values in space.searched.items():
        if isinstance(values, Range):
            moved = min(max(config[POINT][name], values.low), values.high)
            config[POINT][name] = round(moved) if values.whole else moved
    return config


def _numbered_optuna(space: Space, seed: int, before: Sequence[Point]) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    domains = {name: _domain(values) for name, values in space.searched.items()}

    class Numbered(OptunaSearch):
        """Optuna's TPE, each of whose points knows its number."""

        number = 0

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            point = super().suggest(trial_id)
            if point is None:
                return None
            self.number += 1
            return {POINT: {NUMBER: self.number, **space.fixed, **point}}

    return Numbered(
        OptunaSearch.convert_search_space(domains),
        metric=METRIC,
        mode="max",
        seed=seed,
        points_to_evaluate=[{name: point[name] for name in domains} for point in before],
    )


def _domain(values: Choices | Range) -> Any:
    if isinstance(values, Choices):
        return tune.choice(list(values.values))
    if values.whole:
        low, high = int(values.low), int(values.high) + 1
        return tune.lograndint(low, high) if values.log else tune.randint(low, high)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _steps(values: Choices | Range) -> list[Any]:
    if isinstance(values, Choices):
        return list(values.values)
    shares = [step / (GRID_STEPS - 1) for step in range(GRID_STEPS)]
    if values.log:
        steps = [values.low * (values.high / values.low) ** share for share in shares]
    else:
        steps = [values.low + (values.high - values.low) * share for share in shares]
    steps = [float(f"{step:.6g}") for step in steps]
    return sorted({round(step) for step in steps}) if values.whole else steps


def _plain(variant: dict[str, Any]) -> Point:
    """Without numpy's types, which JSON does not know; four figures of a number are as good as sixteen."""
    return {name: _short(value.item() if hasattr(value, "item") else value) for name, value in variant.items()}


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
