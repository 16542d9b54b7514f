"""Detection of an autoscaler: on a cluster that has a real one, and on one that has none."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import COMMAND

# One whose machines are made up, and that may make none: it is only asked.
NEEDLESS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "rsync_filter",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
)  # fmt: skip
AUTOSCALER = {key: [] for key in NEEDLESS} | {
    "cluster_name": "test",
    "max_workers": 0,
    "provider": {"type": "fake_multinode"},
    "available_node_types": {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}},
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "auth": {"ssh_user": "nobody"},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
}


@contextmanager
def head(*options: str) -> Iterator[str]:
    """A head without CPUs, for the length of a `with` block; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0",
             f"--port={port}", "--include-dashboard=false", "--object-store-memory=80000000",
             "--dashboard-agent-listen-port=0", f"--temp-dir={folder}", "--disable-usage-stats", *options],
            env=os.environ | {"RAY_FAKE_CLUSTER": "1"}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.mark.chaos  # half a minute for one line of an error
@pytest.mark.parametrize("autoscales", [True, False])
def test_a_cluster_that_may_grow_is_waited_for(tmp_path: Path, autoscales: bool) -> None:
    (tmp_path / "autoscaler.json").write_text(json.dumps(AUTOSCALER))
    options = [f"--autoscaling-config={tmp_path / 'autoscaler.json'}"] if autoscales else []
    with head(*options) as address:
        train = [*COMMAND, "train", "--nodes", "2", "--cluster", address, "--runs-dir", str(tmp_path / "runs")]
        expected = "0 of 2 nodes up; waiting up to 600 s" if autoscales else "this cluster has 0"
        deadline = time.monotonic() + 60
        while True:  # until the head is up, and its monitor has looked around
            process = subprocess.Popen(train, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            output = ""
            for line in process.stderr:  # the first ones may be of a head that is not up yet, or a table of its nodes
                output += line
                if expected in line:
                    break
            process.kill()
            process.communicate()
            if expected in output:
                break
            assert time.monotonic() < deadline, output
