"""ONNX Runtime sessions that run where they were asked to, or not at all.

Left to itself ONNX Runtime falls back to the CPU and says so on stderr at most. Here the
fallback is off, the libraries are looked for by name, and the provider of every node is read
back.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from resnet_ops.errors import WORK_FAILED, UserError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CUDA_LIBRARIES = {  # what ONNX Runtime's CUDA provider opens, and the distribution that brings it
    "libcuda.so.1": "the NVIDIA driver",
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublas.so.13": "nvidia-cublas",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
    "libcufft.so.12": "nvidia-cufft",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}
TENSORRT_LIBRARIES = {"libnvinfer.so.10": "'tensorrt-cu13<11'", "libnvonnxparser.so.10": "'tensorrt-cu13<11'"}
# TF32 rounds the inputs of a convolution to 10 bits: an error of 4e-4, as large as that of a wrong checkpoint.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
PREPROCESSING = "preprocess/"  # how the names of nodes begin that make the input of raw pixels


@dataclass(frozen=True)
class GraphNode:
    """A node of the graph, and where ONNX Runtime runs it."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True)
class OnnxSession:
    """A loaded model."""

    session: Any
    provider: str
    metadata: dict[str, str]
    nodes: tuple[GraphNode, ...]

    def run(self, x: np.ndarray) -> np.ndarray:
        """What the file gives, (N, classes) float32, for its input: (N, C, H, W) float32 or (N, H, W, C) uint8.

        Raises:
            UserError: ONNX Runtime left the provider while running.
        """
        found: np.ndarray = self.session.run(None, {self.session.get_inputs()[0].name: x})[0]
        if self.session.get_providers()[0] != self.provider:
            raise UserError(f"ONNX Runtime fell back from {self.provider} while running.", exit_code=WORK_FAILED)
        return found

    @property
    def nodes_by_provider(self) -> dict[str, int]:
        """How many nodes run where."""
        found: dict[str, int] = {}
        for node in self.nodes:
            found[node.provider] = found.get(node.provider, 0) + 1
        return found

    @property
    def elsewhere(self) -> tuple[GraphNode, ...]:
        """Nodes that do not run where they were asked to.

        Of a file that takes raw pixels, the CPU may compute sizes and where to cut, as it does for every provider: a
        few numbers. TensorRT may leave nodes to CUDA.
        """
        allowed = {self.provider, CUDA} if self.provider == TENSORRT else {self.provider}
        return tuple(n for n in self.nodes if n.provider not in allowed and not n.name.startswith(PREPROCESSING))


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, asked of the driver alone."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def missing_cuda_libraries(libraries: Mapping[str, str] = CUDA_LIBRARIES) -> dict[str, str]:
    """The libraries that cannot be loaded, after all installed ones were."""
    with quiet():
        ort.preload_dlls()
    missing = {}
    for library, origin in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = origin
    return missing


def choose_provider(wanted: str) -> str:
    """ONNX Runtime's name for 'cuda', 'tensorrt', 'cpu' or 'auto' (CUDA where there is a GPU).

    Raises:
        UserError: CUDA cannot be used though it was asked for, or though there is a GPU: the CPU
            must not stand in for it unasked.
    """
    if wanted == "cpu" or (wanted == "auto" and not has_gpu()):
        return CPU
    if not has_gpu():
        raise UserError("This machine has no NVIDIA GPU.", "Use --provider cpu.", WORK_FAILED)
    tensorrt = wanted == "tensorrt"
    if missing := missing_cuda_libraries(CUDA_LIBRARIES | (TENSORRT_LIBRARIES if tensorrt else {})):
        packages = " ".join(sorted(set(missing.values())))
        raise UserError(
            f"ONNX Runtime cannot use the GPU: {', '.join(missing)} cannot be loaded.",
            f"Install {packages}, or use --provider cpu.",
            WORK_FAILED,
        )
    return TENSORRT if tensorrt else CUDA


def load(model: Path | bytes, provider: str, cuda: Mapping[str, str] = CUDA_OPTIONS, threads: int = 0) -> OnnxSession:
    """Load a file, or one's content, on `provider`, with no way back to the CPU.

    Args:
        model: The file.
        provider: ONNX Runtime's name of it.
        cuda: Options of the CUDA provider; by default those of a proof, in true fp32.
        threads: On the CPU; 0 for as many as there are cores.

    Raises:
        UserError: The file is not one that ONNX Runtime can run, or not there.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.intra_op_num_threads = threads
    on_cuda = (CUDA, dict(cuda))
    providers: list[Any] = [CPU] if provider == CPU else [on_cuda] if provider == CUDA else [TENSORRT, on_cuda]
    name, given = (model.name, str(model)) if isinstance(model, Path) else ("the model", model)
    try:
        with quiet():
            session = ort.InferenceSession(given, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise UserError(
            f"ONNX Runtime cannot load {name} on {provider}: {str(error).splitlines()[0]}", exit_code=WORK_FAILED
        ) from None
    if session.get_providers()[0] != provider:
        raise UserError(f"ONNX Runtime used {session.get_providers()[0]} instead of {provider}.", exit_code=WORK_FAILED)
    nodes = tuple(
        GraphNode(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )
    return OnnxSession(session, provider, dict(session.get_modelmeta().custom_metadata_map), nodes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ONNX Runtime's own words off stdout and stderr; every failure comes as an exception too."""
    ort.set_default_logger_severity(4)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
