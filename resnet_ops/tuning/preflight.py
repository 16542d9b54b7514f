"""Checks before a search starts or resumes: its options, networks, images and code.

The checks of each training are those of `training.preflight`.
"""

from typing import Any

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.machine import versions
from resnet_ops.orchestration.packaging import code_fingerprint
from resnet_ops.orchestration.trial_slots import TrialSlots
from resnet_ops.run_records import DataRecord
from resnet_ops.training import preflight
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.results import SearchObserver, SearchRecord
from resnet_ops.tuning.space import Choices, Space, train_options

COMPARED_VERSIONS = ("python", "torch", "ray", "optuna")  # other versions may train or search differently


def planned_trials(config: TuneConfig, space: Space) -> int:
    """Check that the options of a search fit together; return its number of trials.

    Raises:
        UserError: They do not.
    """
    from resnet_ops.tuning import algorithms

    algorithms.build_scheduler(config, space, 1)  # for its checks
    return algorithms.count_trials(config, space)


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
) -> tuple[TrainConfig, DataRecord]:
    """Check every network against the images, set the options that depend on them, and decode them here once.

    Raises:
        UserError: They do not fit each other, or a machine has other images.
    """
    if base.auto_batch:
        raise UserError("--auto-batch finds a batch size for one network, but a search has many.", "Use --batch-size.")
    source = None
    with preflight.check_every_node(slots.remote_nodes, base.runs_dir.absolute(), base) as compare:
        for model in _models(space):
            base = base.model_copy(update={"model": model})
            source, settled = preflight.check_training(base, slots.device, source)
        assert source is not None
        compare(source.record.fingerprint)
    if not {"batch_size", "recipe"} & (space.searched.keys() | space.fixed.keys()):
        preflight.warn_of_batch_size(base, settled, source.record, observer)
    source = preflight.decode_images(source, settled, observer)
    update = {"device": slots.device, **{name: getattr(settled, name) for name in preflight.OF_THE_IMAGES}}
    return base.model_copy(update=update), source.record


def _models(space: Space) -> list[str]:
    """Return the networks' names, the deepest first.

    Raises:
        UserError: One is not valid.
    """
    from resnet_ops import models

    def values(name: str) -> list[Any]:
        searched = space.searched.get(name)
        return list(searched.values) if isinstance(searched, Choices) else [space.fixed[name]]

    if space.points:
        names = list(dict.fromkeys(train_options(point)["model"] for point in space.points))
    else:
        names = [f"{family}{depth}" for depth in values("depth") for family in values("family")]
    architectures = []
    for name in names:
        try:
            architectures.append(models.parse_name(name))
        except UserError as error:
            raise error.copy_with(cause=f"--depths: {error.cause}") from None
    return [architecture.name for architecture in sorted(architectures, key=lambda a: -a.depth)]
