"""Exported files in other runtimes than ONNX Runtime: OpenVINO and OpenCV's dnn, on the CPU.

They are optional: each has an extra of its own. ONNX Runtime is in `runtime`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from resnet_ops.errors import WORK_FAILED, UserError

OPENVINO, OPENCV = "OpenVINO", "OpenCV"


class Session(Protocol):
    """A model loaded in a runtime; `provider` names that, or the execution provider of ONNX Runtime."""

    @property
    def provider(self) -> str:
        """Return the name."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """Return the output for an input, as `runtime.OnnxSession.run`."""


@dataclass(frozen=True)
class OtherSession:
    """A model loaded in another runtime, and how to compute its output."""

    provider: str
    compute: Callable[[np.ndarray], np.ndarray]

    def run(self, x: np.ndarray) -> np.ndarray:
        """Return the output for an input.

        Raises:
            UserError: The runtime cannot compute it.
        """
        try:
            return self.compute(x)
        except Exception as error:  # each has its own
            raise _failure("compute", "the model", self.provider, error) from None


@dataclass(frozen=True)
class OtherRuntime:
    """A runtime, the module and the extra that it comes with, and how it loads the content of a file."""

    name: str
    module: str
    extra: str
    load: Callable[[Any, Path | bytes], Callable[[np.ndarray], np.ndarray]]

    def installed(self) -> Any:
        """Return the module.

        Raises:
            UserError: It is not installed.
        """
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == self.module
            cause = f"{self.name} is not installed." if missing else f"{self.name} cannot be loaded: {error}."
            raise UserError(cause, f"pip install 'resnet-ops[{self.extra}]'") from None


def _load_in_openvino(openvino: Any, model: Path | bytes) -> Callable[[np.ndarray], np.ndarray]:
    core = openvino.Core()
    # Some CPUs compute in bf16 otherwise.
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: np.array(compiled(x)[0])


def _load_in_opencv(cv2: Any, model: Path | bytes) -> Callable[[np.ndarray], np.ndarray]:
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        net = cv2.dnn.readNetFromONNX(str(model) if isinstance(model, Path) else np.frombuffer(model, np.uint8))
    finally:
        logging.setLogLevel(level)

    def compute(x: np.ndarray) -> np.ndarray:
        net.setInput(x)
        return np.array(net.forward())

    return compute


OTHER_RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        OtherRuntime(OPENVINO, "openvino", "openvino", _load_in_openvino),
        OtherRuntime(OPENCV, "cv2", "opencv", _load_in_opencv),
    )
}


def create_other_session(model: Path | bytes, name: str) -> OtherSession:
    """Load a model in another runtime.

    Raises:
        UserError: The runtime is not installed, or cannot load the model.
    """
    runtime = OTHER_RUNTIMES[name]
    module = runtime.installed()
    try:
        return OtherSession(name, runtime.load(module, model))
    except Exception as error:  # each has its own
        raise _failure("load", model.name if isinstance(model, Path) else "the model", name, error) from None


def _failure(verb: str, what: str, name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot {verb} {what}: {' '.join(str(error).split())[:300]}", exit_code=WORK_FAILED)
