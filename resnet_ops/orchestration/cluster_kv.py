"""The room that a job's workers hold, remembered by the cluster.

Ray gives it back when the job's controller ends, or, where that is killed, when the whole process that began it
does. A search outlives its trials: one whose driver was lost must free its own room before it goes on.
"""

from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

NAMESPACE = b"resnet-ops"


class Remember(WorkerGroupCallback):
    """Writes down which room a run's workers were given."""

    def __init__(self, run: str) -> None:
        self.run = run

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember it, in place of what the run had before."""
        from ray.experimental.internal_kv import _internal_kv_put

        room = worker_group.get_worker_group_state().placement_group_handle.placement_group
        _internal_kv_put(_key(self.run), room.id.hex().encode(), True, namespace=NAMESPACE)


def free(run: str) -> None:
    """Give back the room that a run's workers were given last, if they still have it."""
    from ray import PlacementGroupID
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    held = _internal_kv_get(_key(run), namespace=NAMESPACE)
    if held:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held.decode()))))
        _internal_kv_del(_key(run), namespace=NAMESPACE)


def _key(run: str) -> bytes:
    return f"room/{run}".encode()
