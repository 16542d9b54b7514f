"""Train residual networks on Ray, export them to ONNX, and prove that the export is right.

`resnet_ops.models`, `resnet_ops.training`... load on first use: importing the package
itself imports neither torch nor Ray.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = ("config", "data", "errors", "export", "models", "orchestration", "runs", "training")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
