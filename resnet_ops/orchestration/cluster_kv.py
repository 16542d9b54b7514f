"""State of a job in the key-value store of the cluster's head: its controller and its excluded nodes.

It lasts as long as the head node does.
"""

from resnet_ops.orchestration.ray_internals import kv_del, kv_get, kv_list, kv_put, placement_groups_of

NAMESPACE = "resnet-ops"


def record_controller(run: str, actor_id: str) -> None:
    """Record the controller of a run's workers, in place of the one that the run had before.

    Ray releases the resources that it reserves when it ends or, if it is killed, when the process that started it ends.
    A search outlives its trials: a trial whose driver was lost must release its own before it resumes.
    """
    kv_put(_controller_key(run), actor_id.encode(), NAMESPACE)


def release_resources(run: str) -> None:
    """Release what the controller that was last recorded for a run still reserves."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if controller := kv_get(_controller_key(run), NAMESPACE):
        for group_id in placement_groups_of(controller.decode()):
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))
        kv_del(_controller_key(run), NAMESPACE)


def exclude_node(node: str) -> None:
    """Exclude a node, by its id, for the rest of this process's Ray job."""
    kv_put(_excluded_prefix() + node, b"", NAMESPACE)


def excluded_nodes() -> set[str]:
    """Return the ids of the nodes excluded so far."""
    return {key.removeprefix(_excluded_prefix()) for key in kv_list(_excluded_prefix(), NAMESPACE)}


def _controller_key(run: str) -> str:
    return f"controller/{run}"


def _excluded_prefix() -> str:
    import ray

    return f"excluded/{ray.get_runtime_context().get_job_id()}/"
