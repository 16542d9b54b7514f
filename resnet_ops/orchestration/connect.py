"""A Ray cluster to work on: for now one of this process's own, on this machine."""

import contextlib
import logging
import os
from collections.abc import Iterator

# Set before Ray is imported, for it reads them then; what the user has set stays.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # polls for results; at Ray's 2 s a run ends 4 s late
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts this machine, and it warns at each start
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers keep the directory that relative paths are meant from
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; silences a warning about it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def import_ray() -> None:
    """Import Ray, with its settings settled first and its running commentary off; its errors stay."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # noqa: F401  # it sets up its own logging when imported

    logging.getLogger("ray").setLevel(logging.ERROR)


@contextlib.contextmanager
def local_ray(cpus: int, gpus: int) -> Iterator[None]:
    """Start Ray on this machine for the length of a `with` block, or use the one that runs in this process."""
    import_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
