"""ONNX Runtime sessions that run on the execution provider that was asked for, or not at all.

By default ONNX Runtime falls back to the CPU, with a warning on stderr at most. Here the fallback is off, the libraries
are searched by name, and the provider of every node is read back. What files compute is in `classifier`.
"""

import contextlib
import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.other_runtimes import OTHER_RUNTIMES, Session, create_other_session
from resnet_ops.machine import read_gpus

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ON_GPU = (CUDA, TENSORRT)
CUDA_LIBRARIES = {  # what ONNX Runtime's CUDA provider opens, and the package that has it
    "libcuda.so.1": "the NVIDIA driver",
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublas.so.13": "nvidia-cublas",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
    "libcufft.so.12": "nvidia-cufft",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}
TENSORRT_LIBRARIES = {"libnvinfer.so.10": "'tensorrt-cu13<11'", "libnvonnxparser.so.10": "'tensorrt-cu13<11'"}
INT8_REMEDY = "For CUDA export with --precision fp16; int8 runs with --provider cpu or tensorrt."
# TF32 rounds the inputs of a convolution to 10 bits: an error of 4e-4, as large as that of a wrong checkpoint.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph, and the provider that runs it."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True)
class OnnxSession:
    """A model loaded in ONNX Runtime, with the provider of each node."""

    session: Any
    provider: str
    metadata: dict[str, str]
    nodes: tuple[GraphNode, ...]

    def run(self, x: np.ndarray, run_options: Any = None) -> np.ndarray:
        """Return the output (N, classes) float32 for an input (N, C, H, W) float32, or (N, H, W, C) uint8 if raw.

        Args:
            x: The input.
            run_options: ONNX Runtime's.

        Raises:
            UserError: ONNX Runtime fell back to another provider while running.
        """
        output: np.ndarray = self.session.run(None, {self.session.get_inputs()[0].name: x}, run_options)[0]
        self.refuse_fallback()
        return output

    def refuse_fallback(self) -> None:
        """Check that what ran last ran on the provider that was asked for.

        Raises:
            UserError: ONNX Runtime fell back to another one.
        """
        if self.session.get_providers()[0] != self.provider:
            raise UserError(f"ONNX Runtime fell back from {self.provider} while running.", exit_code=WORK_FAILED)

    @property
    def nodes_by_provider(self) -> dict[str, int]:
        """Return the number of nodes that each provider runs."""
        return dict(Counter(node.provider for node in self.nodes))


def nodes_elsewhere(nodes: Sequence[GraphNode], provider: str) -> list[GraphNode]:
    """Return the nodes that run on another provider than the one asked for; TensorRT may leave nodes to CUDA."""
    allowed = {provider, CUDA} if provider == TENSORRT else {provider}
    return [node for node in nodes if node.provider not in allowed]


def has_gpu() -> bool:
    """Return whether the driver sees an NVIDIA GPU; torch is not needed."""
    return bool(read_gpus())


def missing_cuda_libraries(libraries: Mapping[str, str] = CUDA_LIBRARIES) -> dict[str, str]:
    """Return the libraries that cannot be loaded, each with the package that has it."""
    with suppress_output():
        ort.preload_dlls()
    missing = {}
    for library, origin in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = origin
    return missing


def restrict_provider(name: str, precision: str) -> str:
    """Return the provider to use for files of a precision, 'cuda', 'tensorrt', 'cpu' or 'auto'; int8 on a CPU for auto.

    ONNX Runtime's CUDA provider has no kernels for int8 convolutions (microsoft/onnxruntime 24807).

    Raises:
        UserError: CUDA was asked for with int8.
    """
    if precision != "int8":
        return name
    if name == "cuda":
        raise UserError("int8 is for CPUs and TensorRT, not for --provider cuda.", INT8_REMEDY)
    return "cpu" if name == "auto" else name


def resolve_provider(name: str, precision: str = "fp32") -> str:
    """Return ONNX Runtime's name of 'cuda', 'tensorrt', 'cpu' or 'auto': CUDA if there is a GPU, for int8 the CPU.

    Raises:
        UserError: CUDA cannot be used though it was asked for, or though there is a GPU: the CPU is never used
            silently in its place.
    """
    name = restrict_provider(name, precision)
    if name == "cpu" or (name == "auto" and not has_gpu()):
        return CPU
    if not has_gpu():
        raise UserError("This machine has no NVIDIA GPU.", "Use --provider cpu.", WORK_FAILED)
    tensorrt = name == "tensorrt"
    if missing := missing_cuda_libraries(CUDA_LIBRARIES | (TENSORRT_LIBRARIES if tensorrt else {})):
        packages = " ".join(sorted(set(missing.values())))
        raise UserError(
            f"ONNX Runtime cannot use the GPU: {', '.join(missing)} cannot be loaded.",
            f"Install {packages}, or use --provider cpu.",
            WORK_FAILED,
        )
    return TENSORRT if tensorrt else CUDA


def create_session(
    model: Path | bytes,
    provider: str,
    cuda_options: Mapping[str, str] = CUDA_OPTIONS,
    threads: int = 0,
    assigned_graph: Path | None = None,
) -> OnnxSession:
    """Load a model on a provider, without fallback to the CPU.

    Args:
        model: The file, or its content.
        provider: ONNX Runtime's name of the execution provider.
        cuda_options: Of the CUDA provider; by default those of a verification, in true fp32.
        threads: On the CPU; 0 for as many as there are cores.
        assigned_graph: File to write the graph to whose nodes are assigned to providers; it is not optimized further.

    Raises:
        UserError: The file is missing, or ONNX Runtime cannot run it.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.intra_op_num_threads = threads
    if assigned_graph is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(assigned_graph)
    cuda = (CUDA, dict(cuda_options))
    providers: list[Any] = [CPU] if provider == CPU else [cuda] if provider == CUDA else [TENSORRT, cuda]
    name, path_or_bytes = (model.name, str(model)) if isinstance(model, Path) else ("the model", model)
    try:
        with suppress_output():
            session = ort.InferenceSession(path_or_bytes, options, providers=providers, enable_fallback=0)
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


def load(model: Path | bytes, provider: str) -> Session:
    """Load a model where it is to be verified: on a provider of ONNX Runtime, or in another runtime.

    Raises:
        UserError: It cannot be loaded there.
    """
    if provider not in OTHER_RUNTIMES:
        return create_session(model, provider)
    with suppress_output():
        return create_other_session(model, provider)


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress what ONNX Runtime itself writes to stdout and stderr; every failure is an exception as well."""
    ort.set_default_logger_severity(4)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(devnull)
