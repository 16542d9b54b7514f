"""`resnet-ops bench`: how fast an exported file is, beside torch."""

from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape

from resnet_ops.export.config import BenchConfig

from .clock import importing
from .console import Output, err, table
from .options import Debug, Json, argument, option

EXAMPLES = """
[bold]resnet-ops bench model.onnx[/]  batches of 1, 8 and 64

[bold]resnet-ops bench model.onnx --provider cuda --batch 1,256[/]  TF32, NHWC and CUDA graphs, each a row

[bold]resnet-ops bench model.onnx --no-compile --seconds 0.5[/]  a quick look
"""
default = BenchConfig.default


def _option(name: str) -> Any:
    return option(BenchConfig, name)


def bench(
    file: Annotated[Path, argument(BenchConfig, "file")],
    batch: Annotated[str, _option("batch")] = default("batch"),
    seconds: Annotated[float, _option("seconds")] = default("seconds"),
    compile: Annotated[bool, _option("compile")] = default("compile"),
    provider: Annotated[str, _option("provider")] = default("provider"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure an exported ONNX file in ONNX Runtime, beside the same network in torch, eager and compiled.

    Everyone computes in a process of its own, and they take turns. torch's weights are random, for
    speed does not depend on them.
    """
    output = Output(json)
    config = BenchConfig.of(file=file, batch=batch, seconds=seconds, compile=compile, provider=provider)
    status = err.status("Measuring", spinner="dots")
    with status if err.is_terminal else err:
        with importing():
            from resnet_ops.export import bench as library

        found = library.bench(config, lambda doing: status.update(f"Measuring, {doing}"))
    _show(output, found)
    output.end(
        {
            "rows": [_told(row) for row in found.rows],
            "file": config.file.absolute(),
            "model": found.inside.model,
            "precision": found.inside.precision,
            "provider": found.provider,
        }
    )


def _show(output: Output, found: Any) -> None:
    import torch

    from resnet_ops.machine import cores

    inside, steps = found.inside, found.inside.preprocessing
    on_cpu = found.provider == "CPUExecutionProvider"
    where = f"{cores()} CPU cores" if on_cpu else torch.cuda.get_device_name()
    height, width = steps.resize if inside.input == "raw" else (steps.height, steps.width)
    title = f"{inside.model} {inside.precision}, {height}x{width}, {found.provider}, {where}"
    made = table(">batch", "backend", ">img/s", ">x eager", ">p50 ms", ">p99 ms", ">calls", ">memory MiB", title=title)
    last = None
    for row in found.rows:
        one = row.measured
        made.add_row(str(one.batch) if one.batch != last else "", escape(one.contender.name), *_cells(row))
        last = one.batch
    output.show(made)
    for row in found.rows:
        if row.measured.error:
            one = row.measured
            output.show(f"[yellow]{escape(one.contender.name)}, batch size {one.batch}:[/] {escape(one.error)}")
    memory = (
        "peak of the process, including loading and compiling, without the libraries"
        if on_cpu
        else "GPU memory allocated, without the CUDA context"
    )
    output.show(
        f"With fewer than 100 calls, p99 is the maximum. Memory: {memory}. torch {torch.__version__}, random weights."
    )


def _cells(row: Any) -> list[str]:
    one = row.measured
    if one.error:
        return ["failed", "", "", "", "", ""]
    memory = "" if one.memory_bytes is None else f"{one.memory_bytes / 2**20:,.0f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    p50, p99 = f"{one.p50_ms:,.2f}", f"{one.p99_ms:,.2f}"
    return [f"{one.images_per_second:,.0f}", ratio, p50, p99, f"{len(one.calls):,}", memory]


def _told(row: Any) -> dict[str, Any]:
    one = row.measured
    told = {"batch": one.batch, "name": one.contender.name, "arithmetic": one.contender.arithmetic}
    if one.error:
        return told | {"error": one.error}
    return told | {
        "p50_ms": one.p50_ms,
        "p99_ms": one.p99_ms,
        "images_per_second": one.images_per_second,
        "ratio": row.ratio,
        "memory_bytes": one.memory_bytes,
        "calls": len(one.calls),
    }
