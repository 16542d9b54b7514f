"""Ray is started where we say so, and nowhere else."""

import subprocess
import sys

CODE = """
from resnet_ops.orchestration.connect import import_ray
import_ray()
import ray
try:
    ray.put(1)
except Exception as error:
    print(error)
print(ray.is_initialized())
"""


def test_what_still_reads_when_ray_is_shut_down_starts_no_other() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True)
    told, started = ended.stdout.splitlines()
    assert "Ray has not been started yet" in told
    assert started == "False"
