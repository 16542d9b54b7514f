"""The checks of `resnet-ops doctor`: each uses a part of the machine, such as a Ray cluster or an execution provider.

A list of what is installed proves little: ONNX Runtime lists its CUDA provider as available on machines without a GPU.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, computed_field

from resnet_ops import files
from resnet_ops.errors import UserError
from resnet_ops.formatting import size
from resnet_ops.machine import cores, memory_bytes, versions
from resnet_ops.orchestration import access_token
from resnet_ops.orchestration.connect import local_ray
from resnet_ops.results import Result

SHARED = Path("/dev/shm")  # noqa: S108
State = Literal["ok", "absent", "broken"]
SHARED_BYTES = 1 << 30  # Docker gives 64 MB, with which Ray's object store spills to the disk


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check; 'absent' is no problem unless that part is asked for."""

    name: str
    state: State
    result: Annotated[str, Field(serialization_alias="found")]
    remedy: str = ""


class DoctorReport(Result):
    """The results of all checks."""

    findings: tuple[Diagnosis, ...] = Field(
        description="Each: name, state (ok, absent or broken), result (in JSON `found`), remedy."
    )

    @computed_field(description="Whether nothing is broken.")  # type: ignore[prop-decorator]
    @property
    def ready(self) -> bool:
        """True if nothing is broken."""
        return not self.broken

    @property
    def broken(self) -> list[str]:
        """Names of the checks that failed."""
        return [finding.name for finding in self.findings if finding.state == "broken"]


def examine(runs_dir: Path) -> DoctorReport:
    """Check this machine and the folder or bucket of the runs."""
    return DoctorReport(findings=tuple(_findings(runs_dir)))


def _findings(runs_dir: Path) -> Iterator[Diagnosis]:
    yield Diagnosis("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    yield _versions()
    yield from _attempt("torch", _torch)
    yield from _attempt("torchvision", _torchvision)
    yield _cpu()
    gpu = _gpu()
    yield gpu
    yield from _attempt("NCCL", lambda: _nccl(gpu.state == "ok"))
    yield from _attempt("Ray", _ray)
    yield from _attempt("Ray's token", _token)
    yield from _attempt("ONNX export", _onnx_export)
    for provider in _providers():
        yield from _attempt(provider, lambda provider=provider: _provider(provider))  # type: ignore[misc]
    yield from examine_runs(runs_dir)


def _attempt(name: str, check: Callable[[], Diagnosis]) -> Iterator[Diagnosis]:
    try:
        yield check()
    except UserError as error:
        yield Diagnosis(name, "broken", error.cause, error.remedy)
    except Exception as error:  # any failure is a result
        text = (str(error).splitlines() or [""])[0]
        yield Diagnosis(name, "broken", f"{type(error).__name__}: {text}", f"Reinstall {name}, or see the message.")


def _versions() -> Diagnosis:
    installed = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")
    return Diagnosis("installed", "ok", installed)


def _torch() -> Diagnosis:
    import torch

    image, kernel = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 3, 3)
    assert torch.nn.functional.conv2d(image, kernel).flatten()[0].item() == 27
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Diagnosis("torch", "ok", f"{torch.__version__}, {build}")


def _torchvision() -> Diagnosis:
    import torchvision

    return Diagnosis("torchvision", "ok", torchvision.__version__)


def _cpu() -> Diagnosis:
    import torch

    level = torch.backends.cpu.get_cpu_capability()
    return Diagnosis("CPU", "ok", f"{cores()} cores, {level}, {size(memory_bytes())} memory")


def _gpu() -> Diagnosis:
    import torch

    from resnet_ops.export import runtime

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        listed = ", ".join(f"{d.name} ({size(d.total_memory)})" for d in devices)
        return Diagnosis("GPU", "ok", f"{listed}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    if runtime.has_gpu():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return Diagnosis(
            "GPU", "broken", f"The driver sees a GPU, but torch does not ({build}).",
            "Update the NVIDIA driver, or install a torch built for its CUDA version.",
        )  # fmt: skip
    return Diagnosis("GPU", "absent", "none: training and validation run on the CPU")


def _nccl(gpu: bool) -> Diagnosis:
    import torch
    import torch.distributed as dist

    if not gpu:
        state: State = "absent" if dist.is_gloo_available() else "broken"
        return Diagnosis("NCCL", state, "not tested without a GPU; CPU workers use gloo")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            total = torch.ones(1, device="cuda")
            dist.all_reduce(total)
            assert total.item() == 1
        finally:
            dist.destroy_process_group()
    return Diagnosis("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def _ray() -> Diagnosis:
    started = time.perf_counter()
    with local_ray(1, 0):
        import ray

        task = ray.remote(num_cpus=1)(_process_id).remote()
        assert ray.get(task, timeout=60) != os.getpid()
    seconds = time.perf_counter() - started
    shared = shutil.disk_usage(SHARED).total if SHARED.is_dir() else None
    if shared is not None and shared < SHARED_BYTES:
        return Diagnosis(
            "Ray", "broken", f"{SHARED} has {size(shared)}, too little for Ray's object store.",
            "Increase it: docker run --shm-size=2g",
        )  # fmt: skip
    return Diagnosis("Ray", "ok", f"{ray.__version__}: started and ran a task in {seconds:.1f} s")


def _token() -> Diagnosis:
    """Check the token for clusters that are not started here; those have their own."""
    closed = "Ray started here listens on 127.0.0.1 only, with a token of its own; process groups have none"
    if not access_token.user_token():
        return Diagnosis("Ray's token", "absent", f"none for other clusters; {closed}")
    return Diagnosis("Ray's token", "ok", f"of other clusters, readable by this user only; {closed}")


def _process_id() -> int:
    return os.getpid()


def _onnx_export() -> Diagnosis:
    import onnx
    import onnxscript

    return Diagnosis("ONNX export", "ok", f"onnx {onnx.__version__}, onnxscript {onnxscript.__version__}")


def _providers() -> list[str]:
    import onnxruntime

    with contextlib.suppress(AttributeError):
        return list(reversed(onnxruntime.get_available_providers()))
    return ["onnxruntime"]


def _provider(provider: str) -> Diagnosis:
    from resnet_ops.export import runtime

    if provider == runtime.CUDA:
        if not runtime.has_gpu():
            missing = {name: of for name, of in runtime.missing_cuda_libraries().items() if name != "libcuda.so.1"}
            if not missing:
                return Diagnosis(provider, "absent", "no GPU; all libraries present except the driver's")
            packages = " ".join(sorted(set(missing.values())))
            return Diagnosis(
                provider, "absent", f"no GPU; also missing: {', '.join(missing)}", f"pip install {packages}"
            )
        runtime.resolve_provider("cuda")
    elif provider == runtime.TENSORRT:
        missing = runtime.missing_cuda_libraries(runtime.TENSORRT_LIBRARIES)
        if missing or not runtime.has_gpu():
            why = f"missing: {', '.join(missing)}" if missing else "no GPU"
            remedy = f"for --provider tensorrt: pip install {min(missing.values())}" if missing else ""
            return Diagnosis(provider, "absent", why, remedy)
        runtime.resolve_provider("tensorrt")
    elif provider != runtime.CPU:
        return Diagnosis(provider, "absent", "available in ONNX Runtime, not used by resnet-ops")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "convolution.onnx"
        file.write_bytes(_convolution())
        session = runtime.create_session(file, provider)
        import numpy as np

        assert session.run(np.ones((1, 3, 8, 8), np.float32)).flatten()[0] == 27
    return Diagnosis(provider, "ok", f"ran a convolution, {(time.perf_counter() - started) * 1e3:.0f} ms")


def _convolution() -> bytes:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, size, size])
        for name, channels, size in (("x", 3, 8), ("y", 1, 6))
    )
    kernel = numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "check", [image], [out], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def examine_runs(runs_dir: Path) -> Iterator[Diagnosis]:
    """Check the folder or bucket of the runs."""
    yield from _attempt("runs", lambda: _bucket(runs_dir) if files.is_remote(runs_dir) else _disk(runs_dir))


def _disk(runs_dir: Path) -> Diagnosis:
    folder = next(parent for parent in (runs_dir.absolute(), *runs_dir.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Diagnosis("runs", "broken", f"{folder} cannot be written.", "Choose another folder with --runs-dir.")
    if free < 2**30:
        return Diagnosis(
            "runs", "broken", f"{folder} has only {size(free)} free.", "Free some space, or use --runs-dir."
        )
    return Diagnosis("runs", "ok", f"{runs_dir.absolute()}, {size(free)} free")


def _bucket(runs_dir: Path) -> Diagnosis:
    files.check_reachable(runs_dir)
    started, file, content = time.perf_counter(), runs_dir / ".resnet-ops-doctor", os.urandom(16)
    files.write_atomically(file, content, patience_s=0)
    assert files.read(file) == content
    assert file in files.listed(runs_dir)
    files.remove(file)
    seconds = time.perf_counter() - started
    return Diagnosis("runs", "ok", f"{runs_dir}: wrote, read, listed and deleted an object in {seconds:.1f} s")
