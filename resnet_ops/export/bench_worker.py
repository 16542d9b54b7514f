"""The candidates that `bench` measures, an exported file in ONNX Runtime and its network in torch, and their process.

Each computes in a process of its own (`run_worker`) when its parent tells it to: the threads of one library do not
disturb the other's, memory is that of one candidate alone, and one that crashes does not affect the others.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from resnet_ops.errors import UserError
from resnet_ops.export import runtime
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.machine import cores

Arithmetic = Literal["fp32", "tf32", "fp16"]
Call = Callable[[], object]  # computes one batch, and returns when it is done
WARM_UP_CALLS, WARM_UP_S = 3, 10.0  # whichever comes first
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
CUDA_SETTINGS = {"NHWC": {"prefer_nhwc": "1"}, "CUDA graph": {"enable_cuda_graph": "1"}}


@dataclass(frozen=True)
class BenchCandidate:
    """One backend with its settings.

    Args:
        name: For the table.
        engine: ONNX Runtime, torch eager or torch.compile.
        file: The exported file; torch builds its network from `metadata`, with random weights.
        metadata: The file's metadata.
        provider: ONNX Runtime's name of the execution provider; torch computes on the same device.
        arithmetic: Candidates are compared with those of the same arithmetic.
        channels_last: The memory format of torch's network.
        cuda_options: Of ONNX Runtime's CUDA provider.
    """

    name: str
    engine: Literal["onnx", "eager", "compile"]
    file: Path
    metadata: ModelMetadata
    provider: str
    arithmetic: Arithmetic = "fp32"
    channels_last: bool = False
    cuda_options: Mapping[str, str] = field(default_factory=lambda: dict(CUDA_OPTIONS))

    @property
    def on_gpu(self) -> bool:
        """Return whether it computes on a GPU."""
        return self.provider != runtime.CPU

    def prepare(self, batch: int) -> Call:
        """Load it, with a batch of random images on its device."""
        return self._prepare_onnx_runtime(batch) if self.engine == "onnx" else self._prepare_torch(batch)

    def _prepare_onnx_runtime(self, batch: int) -> Call:
        x = self._random_input(batch)
        if not self.on_gpu:
            return partial(runtime.create_session(self.file, self.provider, threads=cores()).run, x.numpy())
        runtime.resolve_provider("tensorrt" if self.provider == runtime.TENSORRT else "cuda")  # loads its libraries
        session = runtime.create_session(self.file, self.provider, self.cuda_options)
        return _bind_on_gpu(session, x.cuda(), len(self.metadata.class_names))

    def _prepare_torch(self, batch: int) -> Call:
        import torch

        from resnet_ops.data.augment import normalize
        from resnet_ops.models import build

        metadata, steps = self.metadata, self.metadata.preprocessing
        torch.set_num_threads(cores())
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.arithmetic == "tf32"
        device = torch.device("cuda" if self.on_gpu else "cpu")
        dtype = torch.float16 if self.arithmetic == "fp16" else torch.float32
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        shortcut: Any = metadata.shortcut
        classes = len(metadata.class_names)
        network = build(metadata.model, num_classes=classes, in_channels=steps.channels, shortcut=shortcut)
        network.eval().to(device, dtype).to(memory_format=memory_format)
        x = self._random_input(batch).to(device)
        top, left = steps.crop_offset

        def forward(x: torch.Tensor) -> torch.Tensor:
            if metadata.input == "raw":
                x = normalize(x[:, top : top + steps.height, left : left + steps.width], steps.mean, steps.std)
            logits: torch.Tensor = network(x.to(dtype=dtype, memory_format=memory_format))
            return logits.softmax(1) if metadata.output == "probabilities" else logits

        compute = torch.compile(forward, dynamic=False) if self.engine == "compile" else forward

        def call() -> torch.Tensor:
            with torch.inference_mode():
                outputs: torch.Tensor = compute(x)
            if self.on_gpu:
                torch.cuda.synchronize()
            return outputs

        return call

    def _random_input(self, batch: int) -> Any:
        """Return a random input of the file on the CPU: (N, C, H, W) float32, or (N, H, W, C) uint8 if raw."""
        import torch

        steps = self.metadata.preprocessing
        torch.manual_seed(0)
        if self.metadata.input == "raw":
            return torch.randint(0, 256, (batch, *steps.resize, steps.channels), dtype=torch.uint8)
        return torch.randn(batch, steps.channels, steps.height, steps.width)


def _bind_on_gpu(session: runtime.OnnxSession, x: Any, classes: int) -> Call:
    """Bind input and output to tensors on the GPU: nothing is copied, and CUDA graphs can be replayed.

    Raises:
        RuntimeError: ONNX Runtime fell back to another provider, or the outputs are not finite.
    """
    import numpy as np
    import torch

    ort_session = session.session
    outputs = torch.empty(len(x), classes, device="cuda")
    binding = ort_session.io_binding()
    dtype = np.uint8 if x.dtype == torch.uint8 else np.float32
    binding.bind_input(ort_session.get_inputs()[0].name, "cuda", 0, dtype, tuple(x.shape), x.data_ptr())
    name = ort_session.get_outputs()[0].name
    binding.bind_output(name, "cuda", 0, np.float32, tuple(outputs.shape), outputs.data_ptr())
    torch.cuda.synchronize()

    def call() -> tuple[Any, Any]:
        ort_session.run_with_iobinding(binding)  # returns when the GPU is done
        return x, outputs  # kept alive with the call

    call()
    if ort_session.get_providers()[0] != session.provider or not bool(torch.isfinite(outputs).all()):
        raise RuntimeError(f"ONNX Runtime fell back from {session.provider}, or gave non-finite outputs")
    return call


def list_candidates(file: Path, metadata: ModelMetadata, provider: str, compiled: bool) -> list[BenchCandidate]:
    """Return the file in every setting of ONNX Runtime that may be the fastest, and torch beside it."""
    ort = partial(BenchCandidate, engine="onnx", file=file, metadata=metadata, provider=provider)
    torch = partial(BenchCandidate, file=file, metadata=metadata, provider=provider)
    precision: Arithmetic = "fp16" if metadata.precision == "fp16" and provider != runtime.CPU else "fp32"
    arithmetics: list[Arithmetic] = [precision]
    if provider == runtime.CPU:
        candidates = [ort("ONNX Runtime")]
    elif provider == runtime.TENSORRT:
        candidates = [ort("ONNX Runtime, TensorRT", arithmetic=precision)]
    else:
        arithmetics = [precision] if precision == "fp16" else ["fp32", "tf32"]
        candidates = [candidate for arithmetic in arithmetics for candidate in _cuda_candidates(ort, arithmetic)]
    for arithmetic in arithmetics:
        for layout in ("NCHW", "channels_last"):
            name = f"torch eager{_suffix(arithmetic)}, {layout}"
            last = layout == "channels_last"
            candidates.append(torch(name, engine="eager", arithmetic=arithmetic, channels_last=last))
    if compiled:
        arithmetic = arithmetics[-1]
        name = f"torch.compile{_suffix(arithmetic)}"
        candidates.append(torch(name, engine="compile", arithmetic=arithmetic, channels_last=True))
    return candidates


def _cuda_candidates(ort: Callable[..., BenchCandidate], arithmetic: Arithmetic) -> list[BenchCandidate]:
    base = CUDA_OPTIONS | ({"use_tf32": "1"} if arithmetic == "tf32" else {})
    variants = ((), ("NHWC",), ("CUDA graph",), ("NHWC", "CUDA graph"))
    return [
        ort(
            f"ONNX Runtime{_suffix(arithmetic)}" + "".join(f", {setting}" for setting in variant),
            arithmetic=arithmetic,
            cuda_options=base | {key: value for setting in variant for key, value in CUDA_SETTINGS[setting].items()},
        )
        for variant in variants
    ]


def _suffix(arithmetic: Arithmetic) -> str:
    return "" if arithmetic == "fp32" else f", {arithmetic}"


def run_worker(candidate: BenchCandidate, batch: int, parent: Connection) -> None:
    """Run the process of a candidate.

    It sends `(bytes of memory, None)` or `(None, error)`. Then for each number of seconds that it receives it measures
    calls for that long and sends their seconds; at None it ends.
    """
    os.setsid()  # Ctrl-C is for the parent
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)  # errors are sent
    os.dup2(devnull, 2)
    memory = _MemoryMeter(candidate.on_gpu)
    try:
        call = candidate.prepare(batch)
        end = time.perf_counter() + WARM_UP_S
        for _ in range(WARM_UP_CALLS):
            call()
            if time.perf_counter() > end:
                break
    except Exception as error:  # both libraries and their compilers raise errors of any kind
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        parent.send((None, f"{kind}{lines[0][:300]}"))
        return
    parent.send((memory.growth(), None))
    while (seconds := parent.recv()) is not None:
        parent.send(_time_calls(call, seconds))


def _time_calls(call: Call, seconds: float) -> list[float]:
    """Measure the seconds of each call, for so many seconds, at least one call."""
    clock = time.perf_counter
    began = clock()
    call()
    first = clock() - began
    if first > seconds:
        return [first]
    times: list[float] = []  # without the first, which finds the caches filled by other processes
    end = clock() + seconds
    while (began := clock()) < end or not times:
        call()
        times.append(clock() - began)
    return times


class _MemoryMeter:
    """The growth of memory since this object was created.

    On a GPU that of the allocated memory, which no library gives back; on a CPU the peak of this process.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        import torch  # the library's own size is not counted

        if on_gpu:
            torch.zeros(1, device="cuda")  # nor is that of the CUDA context
        self.before = self._used("VmRSS")

    def growth(self) -> int | None:
        """Return the growth in bytes; None if this system does not report memory."""
        used = self._used("VmHWM")
        return None if used is None or self.before is None else max(0, used - self.before)

    def _used(self, field: str) -> int | None:
        if self.on_gpu:
            import torch

            free, total = torch.cuda.mem_get_info()
            return total - free
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return None
        kib = [line.split()[1] for line in status.splitlines() if line.startswith(field)]
        return int(kib[0]) * 1024 if kib else None
