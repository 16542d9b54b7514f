"""What a cluster remembers for a job while its head lives: the room that was given, the machines that are left out."""

from typing import Any

from resnet_ops.orchestration.ray_internals import WorkerGroupCallback, kv_del, kv_get, kv_list, kv_put

NAMESPACE = "resnet-ops"


class PlacementGroupRecorder(WorkerGroupCallback):
    """Writes down which room a run's workers were given.

    Ray gives it back when the job's controller ends, or, where that is killed, when the whole process that began it
    does. A search outlives its trials: one whose driver was lost must free its own room before it goes on.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember it, in place of what the run had before."""
        room = worker_group.get_worker_group_state().placement_group_handle.placement_group
        kv_put(_room(self.run), room.id.hex().encode(), NAMESPACE)


def release_placement_group(run: str) -> None:
    """Give back the room that a run's workers were given last, if they still have it."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    held = kv_get(_room(run), NAMESPACE)
    if held:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held.decode()))))
        kv_del(_room(run), NAMESPACE)


def exclude_node(node: str) -> None:
    """Leave out a machine, by its id, for the rest of this process's job."""
    kv_put(_unfit() + node, b"", NAMESPACE)


def excluded_nodes() -> set[str]:
    """Return the ids of the machines left out so far."""
    return {key.removeprefix(_unfit()) for key in kv_list(_unfit(), NAMESPACE)}


def _room(run: str) -> str:
    return f"room/{run}"


def _unfit() -> str:
    import ray

    return f"unfit/{ray.get_runtime_context().get_job_id()}/"
