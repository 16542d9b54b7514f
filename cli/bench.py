"""`resnet-ops bench`: benchmarks an exported file against PyTorch, and shows the measurements as a table."""

from typing import TYPE_CHECKING

from rich.markup import escape

from resnet_ops.export.config import BenchConfig
from resnet_ops.export.exported_files import with_exported_file

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, literal, table
from .startup import importing

if TYPE_CHECKING:
    from resnet_ops.export.bench import BenchResult, BenchRow

EXAMPLES = """
resnet-ops bench model.onnx  # batch sizes 1, 8 and 64
resnet-ops bench model.onnx --provider cuda --batch 1,256  # with rows for TF32, NHWC and CUDA graphs
resnet-ops bench model.onnx --no-compile --seconds 0.5  # quick
"""


@options_of(BenchConfig)
def bench(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Benchmark an exported ONNX file in ONNX Runtime against PyTorch, eager and compiled: throughput and latency.

    Each backend runs in its own process, and they take turns. PyTorch runs with random weights, which does not change
    its speed.
    """
    output = Output(json)
    config = with_exported_file(options.make(BenchConfig))
    status = err.status("Measuring", spinner="dots")
    with status if err.is_live else err:
        with importing():
            from resnet_ops.export import bench as library

        result = library.bench(config, lambda step: status.update(f"Measuring, {step}"))
    _show(output, result)
    output.end(result)


def _show(output: Output, result: "BenchResult") -> None:
    import torch

    from resnet_ops.machine import cores

    metadata, steps = result.metadata, result.metadata.preprocessing
    on_cpu = result.provider == "CPUExecutionProvider"
    device = f"{cores()} CPU cores" if on_cpu else torch.cuda.get_device_name()
    height, width = steps.resize if metadata.input == "raw" else (steps.height, steps.width)
    title = f"{literal(metadata.model)} {metadata.precision}, {height}x{width}, {result.provider}, {device}"
    columns = (">batch", "backend", ">img/s", ">x eager", ">p50 ms", ">p99 ms", ">calls", ">memory MiB")
    rows = table(*columns, title=title)
    last = None
    for row in result.rows:
        rows.add_row(str(row.batch) if row.batch != last else "", escape(row.name), *_cells(row))
        last = row.batch
    output.show(rows)
    for row in result.rows:
        if row.error:
            output.show(f"[yellow]{escape(row.name)}, batch size {row.batch}:[/] {escape(row.error)}")
    memory = (
        "peak of the process, including loading and compiling, without the libraries"
        if on_cpu
        else "GPU memory allocated, without the CUDA context"
    )
    output.show(
        f"With fewer than 100 calls, p99 is the maximum. Memory: {memory}. torch {torch.__version__}, random weights."
    )


def _cells(row: "BenchRow") -> list[str]:
    if row.error or row.images_per_second is None:
        return ["failed", "", "", "", "", ""]
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.0f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    p50, p99 = f"{row.p50_ms:,.2f}", f"{row.p99_ms:,.2f}"
    return [f"{row.images_per_second:,.0f}", ratio, p50, p99, f"{row.calls:,}", memory]
