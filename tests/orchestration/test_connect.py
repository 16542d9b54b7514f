"""Ray is started where we say so, and nowhere else, and no more of it is imported than is needed."""

import subprocess
import sys

CODE = """
from resnet_ops.orchestration.connect import import_ray
import_ray()
import ray, sys
print({"ray.train", "ray.serve", "ray.data", "torch"} & set(sys.modules))
try:
    ray.put(1)
except Exception as error:
    print(error)
print(ray.is_initialized())
"""


def test_what_still_reads_when_ray_is_shut_down_starts_no_other() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True)
    imported, message, started = ended.stdout.splitlines()
    assert imported == "set()"
    assert "Ray has not been started yet" in message
    assert started == "False"
