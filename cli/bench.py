"""`resnet-ops bench`: how fast an exported file is, beside torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from resnet_ops.export.config import BenchConfig

from .clock import importing
from .console import Output, err, table
from .options import Debug, Json, argument, option

if TYPE_CHECKING:
    from resnet_ops.export.bench import BenchResult, BenchRow

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
    output.end(found)


def _show(output: Output, found: "BenchResult") -> None:
    import torch

    from resnet_ops.machine import cores

    inside, steps = found.inside, found.inside.preprocessing
    on_cpu = found.provider == "CPUExecutionProvider"
    where = f"{cores()} CPU cores" if on_cpu else torch.cuda.get_device_name()
    height, width = steps.resize if inside.input == "raw" else (steps.height, steps.width)
    title = f"{inside.model} {inside.precision}, {height}x{width}, {found.provider}, {where}"
    made = table(">batch", "", ">img/s", ">x eager", ">p50 ms", ">p99 ms", ">calls", ">memory MiB", title=title)
    last = None
    for row in found.rows:
        made.add_row(str(row.batch) if row.batch != last else "", escape(row.name), *_cells(row))
        last = row.batch
    output.show(made)
    for row in found.rows:
        if row.error:
            output.show(f"[yellow]{escape(row.name)}, batch {row.batch}:[/] {escape(row.error)}")
    memory = (
        "the most that its process had beyond the libraries, loading and compiling included"
        if on_cpu
        else "what it took of the GPU's, beyond CUDA's"
    )
    output.show(
        f"p99 of fewer than 100 calls is the slowest. Memory: {memory}. torch {torch.__version__} with random weights."
    )


def _cells(row: "BenchRow") -> list[str]:
    if row.error or row.images_per_second is None:
        return ["failed", "", "", "", "", ""]
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.0f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    p50, p99 = f"{row.p50_ms:,.2f}", f"{row.p99_ms:,.2f}"
    return [f"{row.images_per_second:,.0f}", ratio, p50, p99, f"{row.calls:,}", memory]
