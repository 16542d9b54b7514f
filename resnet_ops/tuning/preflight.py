"""What is looked at before a search begins or goes on: networks, images, code."""

from typing import Any

from resnet_ops import runs
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration.packaging import code_fingerprint
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.runs import DataRecord
from resnet_ops.training import preflight
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.results import SearchObserver, SearchRecord
from resnet_ops.tuning.space import Choices, Space, options

CODE = ("python", "torch", "ray", "optuna")  # other versions of which would train or choose otherwise


def planned_trials(config: TuneConfig, space: Space) -> int:
    """How many trials there are to be.

    Raises:
        UserError: What is asked for cannot be had together.
    """
    from resnet_ops.tuning import algorithms

    algorithms.scheduler(config, space, 1)  # refuses what cannot be had together
    return algorithms.planned(config, space)


def refuse_other_code(record: SearchRecord) -> None:
    """Refuse to go on with a search that was begun with other code.

    Raises:
        UserError: It was; says what differs.
    """
    now = runs.versions()
    differs = [
        f"{n} was {record.versions.get(n)}, now {now.get(n)}" for n in CODE if now.get(n) != record.versions.get(n)
    ]
    if not differs and code_fingerprint() != record.code:
        differs = ["the code of resnet-ops"]
    if differs:
        raise UserError(
            f"{record.name} was started with other code ({'; '.join(differs)}), so its trials would not be comparable.",
            "Resume with the original versions, or start a new search.",
        )


def check_search(
    space: Space, base: TrainConfig, pool: TrialSlots, observer: SearchObserver
) -> tuple[TrainConfig, DataRecord]:
    """Check every network against the images; settle what depends on them, and decode them here once.

    Raises:
        UserError: They do not fit each other, or a machine sees other images.
    """
    if base.auto_batch:
        raise UserError("--auto-batch finds a batch size for one network, but a search has many.", "Use --batch-size.")
    source = None
    with preflight.check_every_node(pool.remote_nodes, base.runs_dir.absolute(), base) as compare:
        for model in _models(space):
            base = base.model_copy(update={"model": model})
            source, settled = preflight.check_training(base, pool.device, source)
        assert source is not None
        compare(source.record.fingerprint)
    if not {"batch_size", "recipe"} & (space.searched.keys() | space.fixed.keys()):
        preflight.warn_of_batch_size(base, settled, source.record, observer)
    source = preflight.decode_images(source, settled, observer)
    update = {"device": pool.device, **{name: getattr(settled, name) for name in preflight.OF_THE_IMAGES}}
    return base.model_copy(update=update), source.record


def _models(space: Space) -> list[str]:
    """The networks' names, the deepest first.

    Raises:
        UserError: One is not valid.
    """
    from resnet_ops import models

    def values(name: str) -> list[Any]:
        searched = space.searched.get(name)
        return list(searched.values) if isinstance(searched, Choices) else [space.fixed[name]]

    if space.points:
        names = list(dict.fromkeys(options(point)["model"] for point in space.points))
    else:
        names = [f"{family}{depth}" for depth in values("depth") for family in values("family")]
    found = []
    for name in names:
        try:
            found.append(models.parse_name(name))
        except UserError as error:
            raise error.copy_with(cause=f"--depths: {error.cause}") from None
    return [architecture.name for architecture in sorted(found, key=lambda a: -a.depth)]
