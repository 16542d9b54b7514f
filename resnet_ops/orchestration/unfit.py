"""The machines that a job leaves out, kept by the cluster, where every process of the job reads them."""

NAMESPACE = b"resnet-ops"


def leave_out(node: str) -> None:
    """Leave out a machine, by its id, for the rest of this process's job."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key() + node.encode(), b"", True, namespace=NAMESPACE)


def left_out() -> set[str]:
    """The ids of those left out so far."""
    from ray.experimental.internal_kv import _internal_kv_list

    found = _internal_kv_list(_key(), namespace=NAMESPACE)
    return {key.removeprefix(_key()).decode() for key in found}


def _key() -> bytes:
    import ray

    return f"unfit/{ray.get_runtime_context().get_job_id()}/".encode()
