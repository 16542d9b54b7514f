"""Search algorithms and schedulers of Ray Tune: which point is tried next, and which trials are stopped.

What may be searched is in `space`; the trials are run in `runner`.
"""

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

METRIC = "best_score"  # `Epoch.score` of the best epoch without what decides ties
EPOCH, SHARE = "epoch", "share"  # of a trial's own epochs: those done, and their share, as recipes differ in length
DEFAULT_TRIALS = 12
GRID_STEPS = 5  # values per range
BALANCED = ("family", "depth")  # drawn equally often rather than at random
POINT, NUMBER = "point", "number"
Point = dict[str, Any]


def count_trials(config: TuneConfig, space: Space) -> int:
    """Return the number of trials of a search.

    Raises:
        UserError: A grid has another number than `config.trials`.
    """
    if space.points:
        return len(space.points)
    if config.search != "grid":
        return config.trials or DEFAULT_TRIALS
    count = 1
    for values in space.searched.values():
        count *= len(_grid_values(values))
    if config.trials not in (None, count):
        raise UserError(
            f"--trials {config.trials}: the grid has {count} combinations.", "Remove --trials, or use --search random."
        )
    return count


def draw_points(config: TuneConfig, space: Space, seed: int) -> list[Point]:
    """Return the points of a study, a grid or a random search: the same for the same seed."""
    if space.points:
        return [dict(point) for point in space.points]
    grid = config.search == "grid"
    spec = {
        name: tune.grid_search(_grid_values(values)) if grid or name in BALANCED else _tune_domain(values)
        for name, values in space.searched.items()
    }
    count = count_trials(config, space)
    points: list[Point] = []
    generator = np.random.default_rng(seed)
    while len(points) < count:
        points += [
            _json_values(variant) for _, variant in generate_variants(copy.deepcopy(spec), random_state=generator)
        ]
    return [space.fixed | point for point in points[:count]]


def build_search(
    config: TuneConfig, space: Space, seed: int, previous_points: Sequence[Point], max_concurrent: int
) -> tuple[SearchAlgorithm | Searcher, dict[str, Any], int]:
    """Return Tune's search_alg, param_space and num_samples; `previous_points` are those of a resumed search."""
    if config.search == "optuna":
        searcher = _numbered_optuna(space, seed, previous_points)
        return ConcurrencyLimiter(searcher, max_concurrent), {}, count_trials(config, space)
    points = draw_points(config, space, seed)
    points[: len(previous_points)] = previous_points
    return BasicVariantGenerator(max_concurrent=max_concurrent), {POINT: tune.grid_search(points)}, 1


def trial_number(trial_id: str, point: Point) -> int:
    """Return a trial's number, from 1: the point's own with Optuna, else by Tune's count.

    It is not in every point, since PBT copies whole points from trial to trial.
    """
    return int(point.get(NUMBER) or int(trial_id.rpartition("_")[2]) + 1)


def build_scheduler(config: TuneConfig, space: Space, epochs: int) -> TrialScheduler:
    """Return the scheduler, which stops trials early.

    Trials are compared where they have done the same share of their own epochs: a long one learns more slowly.

    Args:
        config: The search.
        space: Its space.
        epochs: Of the longest trial; the grace period of the others is shorter in proportion.

    Raises:
        UserError: It cannot be combined with the other options.
    """
    grace = min(config.grace or -(-epochs // 2), epochs)
    if config.scheduler == "asha":
        return AsyncHyperBandScheduler(time_attr=SHARE, max_t=1, grace_period=grace / epochs, reduction_factor=2)  # type: ignore[arg-type]  # any number
    if config.scheduler == "median":
        return MedianStoppingRule(time_attr=SHARE, grace_period=grace / epochs, min_samples_required=3)
    if config.scheduler == "pbt":
        return _population_based_training(config, space, max(1, grace // 2))
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def _population_based_training(config: TuneConfig, space: Space, interval: int) -> TrialScheduler:
    networks = {"depth", "family", "model", "shortcut"} & set(space.searched)
    if networks:
        raise UserError(
            "--scheduler pbt copies weights between trials, so all must be the same network: "
            f"{', '.join(sorted(networks))} cannot be searched.",
            "Give one depth, such as --depths 20, or use --scheduler asha.",
        )
    if "optimizer" in space.searched:
        raise UserError(
            "--scheduler pbt copies what the optimizer keeps between trials, so all must have the same optimizer.",
            "Give one optimizer, or use --scheduler asha.",
        )
    if "recipe" in space.searched:
        raise UserError(
            "--scheduler pbt copies weights at the same epoch of all trials, but recipes differ in their epochs.",
            "Give one recipe, or use --scheduler asha.",
        )
    if config.search != "random" or config.nodes_per_trial > 1:
        raise UserError(
            "--scheduler pbt changes the options itself and trains each trial on one node.",
            "Remove --search and --nodes-per-trial.",
        )
    # Of a list it takes the value itself or its neighbors; what is drawn from a domain it would multiply, be it a name.
    mutations = {
        name: list(values.values) if isinstance(values, Choices) else _tune_domain(values)
        for name, values in space.searched.items()
    }
    return PopulationBasedTraining(
        time_attr=EPOCH,
        perturbation_interval=interval,
        burn_in_period=interval,
        hyperparam_mutations={POINT: mutations},
        custom_explore_fn=lambda config: _clip_to_ranges(config, space),
        log_config=False,
    )


def _clip_to_ranges(config: dict[str, Any], space: Space) -> dict[str, Any]:
    """Clip values to their ranges: PBT multiplies by 0.8 and 1.2, beyond the ends of a range too."""
    for name, values in space.searched.items():
        if isinstance(values, Range):
            value = min(max(config[POINT][name], values.low), values.high)
            config[POINT][name] = round(value) if values.whole else value
    return config


def _numbered_optuna(space: Space, seed: int, previous_points: Sequence[Point]) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    domains = {name: _tune_domain(values) for name, values in space.searched.items()}

    class NumberedOptunaSearch(OptunaSearch):
        """Optuna's TPE sampler, with its trial's number in each point."""

        number = 0

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            point = super().suggest(trial_id)
            if point is None:
                return None
            self.number += 1
            return {POINT: {NUMBER: self.number, **space.fixed, **point}}

    return NumberedOptunaSearch(
        OptunaSearch.convert_search_space(domains),
        metric=METRIC,
        mode="max",
        seed=seed,
        points_to_evaluate=[{name: point[name] for name in domains} for point in previous_points],
    )


def _tune_domain(values: Choices | Range) -> Any:
    if isinstance(values, Choices):
        return tune.choice(list(values.values))
    if values.whole:
        low, high = int(values.low), int(values.high) + 1
        return tune.lograndint(low, high) if values.log else tune.randint(low, high)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _grid_values(values: Choices | Range) -> list[Any]:
    if isinstance(values, Choices):
        return list(values.values)
    fractions = [step / (GRID_STEPS - 1) for step in range(GRID_STEPS)]
    if values.log:
        steps = [values.low * (values.high / values.low) ** fraction for fraction in fractions]
    else:
        steps = [values.low + (values.high - values.low) * fraction for fraction in fractions]
    steps = [float(f"{step:.6g}") for step in steps]
    return sorted({round(step) for step in steps}) if values.whole else steps


def _json_values(variant: dict[str, Any]) -> Point:
    """Return a point without numpy's types, which JSON does not have, and with numbers rounded to four digits."""
    return {name: _rounded(value.item() if hasattr(value, "item") else value) for name, value in variant.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
