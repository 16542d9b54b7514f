"""Checks before a search starts or resumes: its options, networks, images and code.

The checks of each training are those of `training.preflight`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resnet_ops.architectures import parse_name
from resnet_ops.config import AUTO, DATA_SETS, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import size
from resnet_ops.machine import versions
from resnet_ops.orchestration.packaging import code_fingerprint
from resnet_ops.orchestration.placement import Device
from resnet_ops.orchestration.trial_slots import (
    GPU_MEMORY_SHARE,
    GpuShare,
    TrialResources,
    TrialSlots,
    share_gpus,
    smallest_gpu,
)
from resnet_ops.recipe_config import AUGMENTATION, Recipe
from resnet_ops.recipes.reading import configure, read_recipe
from resnet_ops.run_records import DataRecord
from resnet_ops.training import defaults, preflight
from resnet_ops.training.defaults import FINETUNE, are_photos
from resnet_ops.training.image_preparation import check_every_node, decode_images
from resnet_ops.training.start import settle_head, start_weights, with_start
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.results import SearchObserver, SearchRecord
from resnet_ops.tuning.space import ADAMW_RATES, RATES_OF_BOTH, Choices, Range, Space, train_options

if TYPE_CHECKING:
    from resnet_ops.weights.pretrained import PretrainedWeights

PHOTO_NETWORKS: dict[Device, tuple[str, ...]] = {
    "cpu": ("resnet18", "resnet34"),
    "cuda": ("resnet18", "resnet34", "resnet50"),
}  # instead of --depths 8,14,20,32, which are for small images
FINETUNE_LR = Range(0.001, 0.1, log=True, whole=False)  # instead of --lr 0.01:1 (Kornblith et al. 2019)
COMPARED_VERSIONS = ("python", "torch", "ray", "optuna")  # other versions may train or search differently


def planned_trials(config: TuneConfig, space: Space) -> int:
    """Check that the options of a search fit together; return its number of trials.

    Raises:
        UserError: They do not.
    """
    from resnet_ops.tuning import algorithms

    algorithms.build_scheduler(config, space, 1)  # for its checks
    return algorithms.count_trials(config, space)


def longest_training(space: Space, options: dict[str, Any]) -> int:
    """Return the epochs of the longest trial: recipes that are searched may differ in them.

    Args:
        space: The search space.
        options: The options of train that all trials share.
    """
    recipes = _values(space, "recipe") or [options.get("recipe")]
    return max(configure(**options | {"recipe": recipe}).epochs for recipe in recipes)


def refuse_other_code(record: SearchRecord) -> None:
    """Refuse to resume a search that was started with other code.

    Raises:
        UserError: It was; the message names what differs.
    """
    before, now = record.versions, versions()
    changes = [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in COMPARED_VERSIONS
        if now.get(name) != before.get(name)
    ]
    if not changes and code_fingerprint() != record.code:
        changes = ["the code of resnet-ops"]
    if changes:
        raise UserError(
            f"{record.name} was started with other code ({'; '.join(changes)}), so its trials would not be comparable.",
            "Resume with the original versions, or start a new search.",
        )


def check_search(
    space: Space, base: TrainConfig, slots: TrialSlots, observer: SearchObserver
) -> tuple[Space, TrainConfig, DataRecord, "PretrainedWeights | None"]:
    """Check every network against the images, set the options that depend on them, and decode them here once.

    Returns:
        The space and the options that all trials share, with every default resolved, the images, and the weights that
        all begin with, if any.

    Raises:
        UserError: They do not fit each other, or a machine has other images.
    """
    if base.auto_batch:
        raise UserError("--auto-batch finds a batch size for one network, but a search has many.", "Use --batch-size.")
    recipes = [read_recipe(str(recipe)) for recipe in _values(space, "recipe")]
    if base.fit_all or any(recipe.get("fit_all") for recipe in recipes):
        raise UserError("A search compares networks on validation images, and --fit-all leaves none.", "Use --refit.")
    listed = _listed_models(space)
    if base.weights is not None and len(listed) > 1:
        raise UserError(
            f"--weights are those of one network, and this search has {len(listed)}.",
            "Search one network, such as model=resnet18.",
        )
    with check_every_node(slots.remote_nodes, base.runs_dir.absolute(), base) as compare:
        asked = base.model_copy(update={"model": AUTO if AUTO in listed else listed[0]})
        base, weights = start_weights(asked, slots.device, observer)
        source, settled = preflight.check_training(base, slots.device)
        chosen = base.model_copy(update={"model": settled.model})  # which is said of the space
        choices = list(defaults.explain_choices(chosen, settled, source.record, slots.device))
        hint = defaults.suggest_weights(chosen, source.record)
        space = settle_space(space, settled, source.record, slots.device)
        for model in _models(space):
            base = base.model_copy(update={"model": model})
            source, settled = preflight.check_training(base, slots.device, source)
            for layer in _values(space, "freeze"):
                preflight.check_freezing(base.model_copy(update={"freeze": layer}), parse_name(model))
        source, start = with_start(source, base, weights, observer)
        settled = settle_head(base, settled, start)
        compare(source.record.fingerprint)
    largest = max(_values(space, "batch_size") or [settled.batch_size])
    preflight.check_steps(settled.model_copy(update={"batch_size": largest}), source.record)
    in_space = space.searched.keys() | space.fixed.keys()
    for choice in choices:
        if not {choice.option.replace("-", "_"), "recipe"} & in_space:
            observer.warn(str(choice))
    if hint:
        observer.warn(hint)
    defaults.warn_of_mirroring(base, source.record, observer)
    searched = " where it is not searched" if space.searched.keys() & {"recipe", *AUGMENTATION} else ""
    observer.warn(f"Augmentation{searched}: {settled.augmentation(source.record.stored)}.")
    for line in () if base.data in DATA_SETS else source.summary:
        observer.warn(line)
    source = decode_images(source, settled, observer)
    own = {name: getattr(settled, name) for name in ("recipe", *Recipe.model_fields)}
    update = {"device": slots.device, **own}
    return space, base.model_copy(update=update), source.record, weights


def settle_space(space: Space, settled: TrainConfig, data: DataRecord, device: Device) -> Space:
    """Return the space for these images: the network that `auto` stands for, and for photos other defaults.

    Args:
        space: As it was requested.
        settled: What `check_training` makes of the options that all trials share; its network is that of `auto`.
        data: The images.
        device: The device of each trial.
    """
    searched, fixed = dict(space.searched), dict(space.fixed)
    if {"depth", "family"} <= space.defaults and (settled.weights or are_photos(data)):
        for name in ("depth", "family"):
            searched.pop(name, None)
            fixed.pop(name, None)
        if settled.weights:  # which are of one network
            fixed["model"] = settled.model
        else:
            searched["model"] = Choices(PHOTO_NETWORKS[device])
    if fixed.get("model") == AUTO:
        fixed["model"] = settled.model
    elif isinstance(models := searched.get("model"), Choices):
        names = dict.fromkeys(settled.model if name == AUTO else name for name in models.values)
        searched["model"] = Choices(tuple(names))
    rates = searched.get("lr")
    if "lr" in space.defaults and isinstance(rates, Range) and rates not in (ADAMW_RATES, RATES_OF_BOTH):
        if settled.recipe == FINETUNE:
            searched["lr"] = FINETUNE_LR
        elif "batch_size" not in searched | fixed:
            share = settled.lr / configure(recipe=settled.recipe).lr  # less than 1 where there are few images
            searched["lr"] = replace(rates, low=rates.low * share, high=rates.high * share)
    return Space(searched, fixed, space.points)


def with_shared_gpus(
    slots: TrialSlots,
    resources: TrialResources,
    trials: int,
    space: Space,
    base: TrainConfig,
    data: DataRecord,
    observer: SearchObserver,
) -> TrialSlots:
    """Let several trials share a GPU, and report it; not where GPUs per trial are given, or a trial has several nodes.

    Args:
        slots: Room for one trial on each GPU.
        resources: As requested.
        trials: Number of trials that could run at once if there was room.
        space: The search space.
        base: The options that all trials share, as `check_search` settled them.
        data: The images.
        observer: Receives how many, and why.

    Raises:
        UserError: A node does not answer.
    """
    if slots.device == "cpu" or resources.gpus is not None or resources.nodes > 1 or trials == 1:
        return slots
    gpu_bytes = smallest_gpu(slots)
    trial_bytes = largest_trial_bytes(space, base, data, gpu_bytes)
    slots, share = share_gpus(slots, resources, trials, int(GPU_MEMORY_SHARE * gpu_bytes / trial_bytes))
    if share.trials_per_gpu > 1:
        observer.warn(explain_share(share, trial_bytes, gpu_bytes))
    return slots


def largest_trial_bytes(space: Space, base: TrainConfig, data: DataRecord, gpu_bytes: int) -> int:
    """Estimate the GPU memory of the trial that takes most: the largest of the networks, with the largest batch."""
    from resnet_ops.training.memory import training_bytes

    recipes = [read_recipe(str(recipe)) for recipe in _values(space, "recipe")]

    def candidates(name: str) -> list[Any]:
        searched = _values(space, name)
        if searched and not space.points:
            return searched
        return [*searched, getattr(base, name), *(recipe[name] for recipe in recipes if name in recipe)]

    update = {
        "batch_size": max(candidates("batch_size")),
        "accumulate": min(candidates("accumulate")),
        "ema": max(candidates("ema")),
        "optimizer": "adamw" if "adamw" in candidates("optimizer") else "sgd",
        "precision": "fp32" if len(set(candidates("precision"))) > 1 else base.precision,
    }
    largest = base.model_copy(update=update)
    configs = [largest.model_copy(update={"model": model, "shortcut": None}) for model in _models(space)]
    return max(training_bytes(config, data, gpu_bytes) for config in configs)


def explain_share(share: GpuShare, trial_bytes: int, gpu_bytes: int) -> str:
    """Return how many trials share a GPU, and why not more, in a sentence."""
    reasons = {
        "memory": "",
        "cores": ", and there are CPU cores for no more",
        "trials": ", and there are no more of them",
        "most": ", and more would wait for each other",
    }
    return (
        f"{share.trials_per_gpu} trials at once on each GPU: each takes about {size(trial_bytes)} of {size(gpu_bytes)}"
        f"{reasons[share.limit]}. Another number: --gpus-per-trial."
    )


def _values(space: Space, name: str) -> list[Any]:
    """Return the values of an option in the space; of a range its ends."""
    searched = space.searched.get(name)
    if isinstance(searched, Choices):
        return list(searched.values)
    if isinstance(searched, Range):
        return [searched.low, searched.high]
    return [space.fixed[name]] if name in space.fixed else [point[name] for point in space.points if name in point]


def _listed_models(space: Space) -> list[str]:
    """Return the networks that were asked for; `auto` where images and weights have a say in them."""
    if AUTO in (names := _values(space, "model")):
        return names
    return [AUTO] if {"depth", "family"} <= space.defaults else _models(space)


def _models(space: Space) -> list[str]:
    """Return the networks' names, the deepest first.

    Raises:
        UserError: One is not valid.
    """
    if space.points:
        names = list(dict.fromkeys(train_options(point)["model"] for point in space.points))
    else:
        names = [f"{family}{depth}" for depth in _values(space, "depth") for family in _values(space, "family")]
        names = names or _values(space, "model")
    architectures = []
    for name in names:
        try:
            architectures.append(parse_name(name))
        except UserError as error:
            raise error.copy_with(cause=f"--depths: {error.cause}") from None
    return [architecture.name for architecture in sorted(architectures, key=lambda a: -a.depth)]
