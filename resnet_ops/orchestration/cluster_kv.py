"""State of a job in the key-value store of the cluster's head: its placement group and its excluded nodes.

It lasts as long as the head node does.
"""

from typing import Any

from resnet_ops.orchestration.ray_internals import WorkerGroupCallback, kv_del, kv_get, kv_list, kv_put

NAMESPACE = "resnet-ops"


class PlacementGroupRecorder(WorkerGroupCallback):
    """Records the placement group that reserves the resources of a run's workers.

    Ray releases it when the job's controller ends or, if that is killed, when the process that started it ends. A
    search outlives its trials: a trial whose driver was lost must release its own before it resumes.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Record it, in place of the one that the run had before."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        kv_put(_placement_group_key(self.run), group.id.hex().encode(), NAMESPACE)


def release_placement_group(run: str) -> None:
    """Release the placement group that was last recorded for a run, if it still exists."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    group_id = kv_get(_placement_group_key(run), NAMESPACE)
    if group_id:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id.decode()))))
        kv_del(_placement_group_key(run), NAMESPACE)


def exclude_node(node: str) -> None:
    """Exclude a node, by its id, for the rest of this process's Ray job."""
    kv_put(_excluded_prefix() + node, b"", NAMESPACE)


def excluded_nodes() -> set[str]:
    """Return the ids of the nodes excluded so far."""
    return {key.removeprefix(_excluded_prefix()) for key in kv_list(_excluded_prefix(), NAMESPACE)}


def _placement_group_key(run: str) -> str:
    return f"placement_group/{run}"


def _excluded_prefix() -> str:
    import ray

    return f"excluded/{ray.get_runtime_context().get_job_id()}/"
