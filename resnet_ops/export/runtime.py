"""ONNX Runtime sessions that run where they were asked to, or not at all.

Left to itself ONNX Runtime falls back to the CPU and says so on stderr at most. Here the
fallback is off, the libraries are looked for by name, and the provider of every node is read
back.
"""

import contextlib
import ctypes
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from resnet_ops.errors import WORK_FAILED, UserError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_LIBRARIES = {  # what ONNX Runtime's CUDA provider opens, and the distribution that brings it
    "libcuda.so.1": "the NVIDIA driver",
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublas.so.13": "nvidia-cublas",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
    "libcufft.so.12": "nvidia-cufft",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}
# TF32 rounds the inputs of a convolution to 10 bits: an error of 4e-4, as large as that of a wrong checkpoint.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


@dataclass(frozen=True)
class Session:
    """A loaded model, and what it says of itself."""

    session: Any
    provider: str
    metadata: dict[str, str]
    nodes: dict[str, int]  # nodes a provider

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, classes) float32 of normalised images (N, C, H, W) float32."""
        logits: np.ndarray = self.session.run(None, {self.session.get_inputs()[0].name: images})[0]
        if self.session.get_providers()[0] != self.provider:
            raise UserError(f"ONNX Runtime left {self.provider} while running.", exit_code=WORK_FAILED)
        return logits

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Do to raw pixels (N, H, W, C) uint8 what the file's metadata says; nothing else is consulted."""
        steps = json.loads(self.metadata["preprocessing"])
        x = pixels.astype(np.float32) * np.float32(steps["scale"])
        x = (x - np.float32(steps["mean"])) / np.float32(steps["std"])
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, asked of the driver alone."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def missing_cuda_libraries() -> dict[str, str]:
    """The libraries of `CUDA_LIBRARIES` that cannot be loaded, after all installed ones were."""
    with quiet():
        ort.preload_dlls()
    missing = {}
    for library, origin in CUDA_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = origin
    return missing


def choose_provider(wanted: str) -> str:
    """CUDA or CPU for 'cuda', 'cpu' or 'auto' (CUDA where there is a GPU).

    Raises:
        UserError: CUDA cannot be used though it was asked for, or though there is a GPU: the CPU
            must not stand in for it unasked.
    """
    if wanted == "cpu" or (wanted == "auto" and not has_gpu()):
        return CPU
    if not has_gpu():
        raise UserError("There is no NVIDIA GPU here to validate on.", "Use --provider cpu.", WORK_FAILED)
    if missing := missing_cuda_libraries():
        packages = " ".join(sorted(set(missing.values())))
        raise UserError(
            f"ONNX Runtime cannot use the GPU: {', '.join(missing)} cannot be loaded.",
            f"Install {packages}, or use --provider cpu.",
            WORK_FAILED,
        )
    return CUDA


def load(path: Path, provider: str) -> Session:
    """Load the file at `path` on `provider`, with no way back to the CPU.

    Raises:
        UserError: The file is not one that ONNX Runtime can run, or not there.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers: list[Any] = [CPU]
    if provider == CUDA:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(CUDA, CUDA_OPTIONS)]
    try:
        with quiet():
            session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise UserError(
            f"ONNX Runtime cannot load {path.name} on {provider}: {str(error).splitlines()[0]}", exit_code=WORK_FAILED
        ) from None
    if session.get_providers()[0] != provider:
        raise UserError(f"ONNX Runtime took {session.get_providers()[0]} for {provider}.", exit_code=WORK_FAILED)
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return Session(session, provider, dict(session.get_modelmeta().custom_metadata_map), dict(nodes))


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
