"""What `bench` measures: an exported file in ONNX Runtime, and the same network in torch.

Each contender computes in a process of its own (`work`), told by its parent when it is its turn: neither library's
threads then disturb the other's, memory is one contender's alone, and one that dies takes nobody with it.
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
ORT_CUDA = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
SETTINGS = {"NHWC": {"prefer_nhwc": "1"}, "CUDA graph": {"enable_cuda_graph": "1"}}


@dataclass(frozen=True)
class BenchCandidate:
    """Something to measure.

    Args:
        name: For the table.
        engine: Who computes.
        file: The exported file; torch builds its network after `inside`, with random weights.
        metadata: The file's metadata.
        provider: ONNX Runtime's name of it; says where torch computes too.
        arithmetic: What it is compared within.
        channels_last: The memory format of torch's network.
        cuda: Options of ONNX Runtime's CUDA provider.
    """

    name: str
    engine: Literal["onnx", "eager", "compile"]
    file: Path
    metadata: ModelMetadata
    provider: str
    arithmetic: Arithmetic = "fp32"
    channels_last: bool = False
    cuda: Mapping[str, str] = field(default_factory=lambda: dict(ORT_CUDA))

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.provider != runtime.CPU

    def prepare(self, batch: int) -> Call:
        """Load it, with images of noise on the device."""
        return self._in_onnx_runtime(batch) if self.engine == "onnx" else self._in_torch(batch)

    def _in_onnx_runtime(self, batch: int) -> Call:
        x = self._images(batch)
        if not self.on_gpu:
            return partial(runtime.load(self.file, self.provider, threads=cores()).run, x.numpy())
        runtime.choose_provider("tensorrt" if self.provider == runtime.TENSORRT else "cuda")  # loads its libraries
        loaded = runtime.load(self.file, self.provider, self.cuda)
        return _bound(loaded, x.cuda(), len(self.metadata.class_names))

    def _in_torch(self, batch: int) -> Call:
        import torch

        from resnet_ops.data.augment import normalise
        from resnet_ops.models import build

        metadata, steps = self.metadata, self.metadata.preprocessing
        torch.set_num_threads(cores())
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.arithmetic == "tf32"
        device = torch.device("cuda" if self.on_gpu else "cpu")
        dtype = torch.float16 if self.arithmetic == "fp16" else torch.float32
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        shortcut: Any = metadata.shortcut
        classes = len(metadata.class_names)
        network = build(metadata.model, num_classes=classes, in_channels=steps.channels, shortcut=shortcut)
        network.eval().to(device, dtype).to(memory_format=layout)
        x = self._images(batch).to(device)
        top, left = steps.cut

        def forward(x: torch.Tensor) -> torch.Tensor:
            if metadata.input == "raw":
                x = normalise(x[:, top : top + steps.height, left : left + steps.width], steps.mean, steps.std)
            found: torch.Tensor = network(x.to(dtype=dtype, memory_format=layout))
            return found.softmax(1) if metadata.output == "probabilities" else found

        compute = torch.compile(forward, dynamic=False) if self.engine == "compile" else forward

        def call() -> torch.Tensor:
            with torch.inference_mode():
                found: torch.Tensor = compute(x)
            if self.on_gpu:
                torch.cuda.synchronize()
            return found

        return call

    def _images(self, batch: int) -> Any:
        """Noise, as the file takes its input: on the CPU, (N, C, H, W) float32 or (N, H, W, C) uint8."""
        import torch

        steps = self.metadata.preprocessing
        torch.manual_seed(0)
        if self.metadata.input == "raw":
            return torch.randint(0, 256, (batch, *steps.resize, steps.channels), dtype=torch.uint8)
        return torch.randn(batch, steps.channels, steps.height, steps.width)


def _bound(loaded: runtime.OnnxSession, x: Any, classes: int) -> Call:
    """Compute on tensors that are on the GPU and stay there: nothing is copied, and CUDA graphs can be replayed."""
    import numpy as np
    import torch

    session, given = loaded.session, loaded.session.get_inputs()[0]
    found = torch.empty(len(x), classes, device="cuda")
    binding = session.io_binding()
    element = np.uint8 if x.dtype == torch.uint8 else np.float32
    binding.bind_input(given.name, "cuda", 0, element, tuple(x.shape), x.data_ptr())
    output = session.get_outputs()[0].name
    binding.bind_output(output, "cuda", 0, np.float32, tuple(found.shape), found.data_ptr())
    torch.cuda.synchronize()

    def call() -> tuple[Any, Any]:
        session.run_with_iobinding(binding)  # returns when the GPU is done
        return x, found  # kept alive with the call

    call()
    if session.get_providers()[0] != loaded.provider or not bool(torch.isfinite(found).all()):
        raise RuntimeError(f"ONNX Runtime fell back from {loaded.provider}, or gave non-finite outputs")
    return call


def candidates(file: Path, metadata: ModelMetadata, provider: str, compiled: bool) -> list[BenchCandidate]:
    """The file, in every way of running it that may be the fastest, and torch beside it."""
    ort = partial(BenchCandidate, engine="onnx", file=file, metadata=metadata, provider=provider)
    torch = partial(BenchCandidate, file=file, metadata=metadata, provider=provider)
    precision: Arithmetic = "fp16" if metadata.precision == "fp16" and provider != runtime.CPU else "fp32"
    if provider == runtime.CPU:
        made, arithmetics = [ort("ONNX Runtime")], [precision]
    elif provider == runtime.TENSORRT:
        made, arithmetics = [ort("ONNX Runtime, TensorRT", arithmetic=precision)], [precision]
    elif precision == "fp16":
        made, arithmetics = list(_on_cuda(ort, "fp16")), [precision]
    else:
        arithmetics = ["fp32", "tf32"]
        made = [one for arithmetic in ("fp32", "tf32") for one in _on_cuda(ort, arithmetic)]
    for arithmetic in arithmetics:
        said = "" if arithmetic == "fp32" else f", {arithmetic}"
        for layout in ("NCHW", "channels_last"):
            last = layout == "channels_last"
            name = f"torch eager{said}, {layout}"
            made.append(torch(name, engine="eager", arithmetic=arithmetic, channels_last=last))
    if compiled:
        said = "" if arithmetics[-1] == "fp32" else f", {arithmetics[-1]}"
        made.append(torch(f"torch.compile{said}", engine="compile", arithmetic=arithmetics[-1], channels_last=True))
    return made


def _on_cuda(ort: Callable[..., BenchCandidate], arithmetic: Any) -> list[BenchCandidate]:
    base = dict(ORT_CUDA) | ({"use_tf32": "1"} if arithmetic == "tf32" else {})
    said = "" if arithmetic == "fp32" else f", {arithmetic}"
    variants = ((), ("NHWC",), ("CUDA graph",), ("NHWC", "CUDA graph"))
    return [
        ort(
            f"ONNX Runtime{said}" + "".join(f", {setting}" for setting in variant),
            arithmetic=arithmetic,
            cuda=base | {key: value for setting in variant for key, value in SETTINGS[setting].items()},
        )
        for variant in variants
    ]


def work(contender: BenchCandidate, batch: int, parent: Connection) -> None:
    """The process of a contender: says `(bytes of memory, None)` or `(None, why not)`, then measures when asked to.

    Asked with seconds, it answers with the seconds that each call took; asked with None, it ends.
    """
    os.setsid()  # Ctrl-C is for the parent
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # whatever is wrong is sent
    os.dup2(nowhere, 2)
    memory = _Memory(contender.on_gpu)
    try:
        call = contender.prepare(batch)
        enough = time.perf_counter() + WARM_UP_S
        for _ in range(WARM_UP_CALLS):
            call()
            if time.perf_counter() > enough:
                break
    except Exception as error:  # whatever the two libraries and their compilers raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        parent.send((None, f"{kind}{lines[0][:300]}"))
        return
    parent.send((memory.grown(), None))
    while (seconds := parent.recv()) is not None:
        parent.send(_turn(call, seconds))


def _turn(call: Call, seconds: float) -> list[float]:
    """Seconds of each call, for so many seconds, at least one."""
    clock = time.perf_counter
    began = clock()
    call()
    first = clock() - began
    if first > seconds:
        return [first]
    took: list[float] = []  # without the first, which finds caches that are others'
    end = clock() + seconds
    while (began := clock()) < end or not took:
        call()
        took.append(clock() - began)
    return took


class _Memory:
    """How much more memory is in use than when this was made.

    On a GPU what the device has lent since, which no library gives back; on a CPU the most that this process had.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        import torch  # its own size is nobody's share

        if on_gpu:
            torch.zeros(1, device="cuda")  # nor is that of the CUDA context
        self.before = self._now()

    def grown(self) -> int | None:
        """In bytes; None where this system does not tell."""
        now = self._now("VmHWM")
        return None if now is None or self.before is None else max(0, now - self.before)

    def _now(self, what: str = "VmRSS") -> int | None:
        if self.on_gpu:
            import torch

            free, total = torch.cuda.mem_get_info()
            return total - free
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return None
        kib = [line.split()[1] for line in status.splitlines() if line.startswith(what)]
        return int(kib[0]) * 1024 if kib else None
