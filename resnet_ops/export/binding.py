"""Inference on buffers that are bound once: a session for a service, whose batches come in any number of images.

ONNX Runtime by itself allocates a batch's input and output on the GPU, copies, and launches a kernel for each node.
Here a batch is copied into the buffers of the next larger of a few sizes, whose addresses never change, so that its
whole computation can be one CUDA graph for each size. How files are loaded on a provider is in `runtime`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import runtime
from resnet_ops.export.metadata import ModelMetadata

DEVICES = {runtime.CPU: "cpu", runtime.CUDA: "cuda"}  # where the buffers of each provider are
TOLERANCE = 1e-2  # of the largest output: sums of another batch size are in another order, also in fp16
NO_GRAPH = "-1"  # ONNX Runtime's id for a run that is neither captured nor replayed
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundBatch:
    """The buffers of a batch size: `pixels` is on the host, the other two on the device that computes."""

    pixels: np.ndarray
    input: Any
    output: Any
    binding: Any
    run_options: Any


class BoundSession:
    """A session that runs batches of up to the largest of some sizes on buffers that are bound beforehand.

    With CUDA graphs, ONNX Runtime keeps them for each thread: `prepare` and `run` are to be called on the same one.

    Args:
        session: The loaded model, in which a row of the output depends on that row of the input alone.
        shape: The input's shape without the batch: only such batches are run on bound buffers.
        sizes: Batch sizes to bind buffers for.
        captures: Whether the session was created to capture CUDA graphs.
    """

    def __init__(
        self, session: runtime.OnnxSession, shape: tuple[int, ...], sizes: Sequence[int], captures: bool = False
    ) -> None:
        self.session, self.shape, self.captures = session, shape, captures
        self.sizes = sorted(sizes)
        self.batches: dict[int, BoundBatch] = {}

    @property
    def provider(self) -> str:
        """Return ONNX Runtime's name of the execution provider."""
        return self.session.provider

    def prepare(self) -> None:
        """Bind the buffers of each size and run it, which captures its CUDA graph; check that it computes the same.

        Raises:
            UserError: ONNX Runtime cannot run it so.
        """
        (source,), (target,) = self.session.session.get_inputs(), self.session.session.get_outputs()
        generator = np.random.default_rng(0)
        for size in reversed(self.sizes):  # the smaller ones fit into the memory of the largest
            shape = (size, *self.shape)
            if source.type == "tensor(uint8)":
                x = generator.integers(0, 256, shape, np.uint8)
            else:
                x = generator.standard_normal(shape, np.float32)
            try:
                expected = self._run_unbound(x)
                batch = self._bind(np.zeros_like(x), source.name, target.name, expected.shape[1])
                self._compute(batch)  # captures
                batch.pixels[:] = x
                actual = self._compute(batch)  # replays
            except UserError:
                raise
            except Exception as error:  # ONNX Runtime's own exceptions share no base class
                reason = str(error).splitlines()[0]
                raise UserError(f"Batches of {size} cannot be bound: {reason}", exit_code=WORK_FAILED) from error
            if not np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max():
                raise UserError(f"Bound batches of {size} give other outputs.", exit_code=WORK_FAILED)
            self.batches[size] = batch

    def run(self, x: np.ndarray) -> np.ndarray:
        """Return the output (N, classes) float32, as `OnnxSession.run`.

        Raises:
            UserError: ONNX Runtime fell back to another provider while running.
        """
        size = next((size for size in self.sizes if size >= len(x)), 0)
        batch = self.batches.get(size)
        if batch is None or x.shape[1:] != self.shape:
            return self._run_unbound(x)
        batch.pixels[: len(x)] = x  # the rows after them are of an earlier batch, and computed for nothing
        return self._compute(batch)[: len(x)]

    def _bind(self, pixels: np.ndarray, source: str, target: str, classes: int) -> BoundBatch:
        device = DEVICES[self.provider]
        binding = self.session.session.io_binding()
        input_ = ort.OrtValue.ortvalue_from_shape_and_type(pixels.shape, pixels.dtype.type, device)
        output = ort.OrtValue.ortvalue_from_shape_and_type((len(pixels), classes), np.float32, device)
        binding.bind_ortvalue_input(source, input_)
        binding.bind_ortvalue_output(target, output)
        return BoundBatch(pixels, input_, output, binding, _run_options(str(len(pixels)) if self.captures else None))

    def _compute(self, batch: BoundBatch) -> np.ndarray:
        batch.input.update_inplace(batch.pixels)
        self.session.session.run_with_iobinding(batch.binding, batch.run_options)
        self.session.refuse_fallback()
        output: np.ndarray = np.array(batch.output.numpy())  # a copy, for on the CPU it is the buffer itself
        return output

    def _run_unbound(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(x, _run_options(NO_GRAPH) if self.captures else None)


def _run_options(graph: str | None) -> Any:
    options = ort.RunOptions()
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", graph)
    return options


def batch_sizes(largest: int) -> list[int]:
    """Return the powers of two below the largest batch size, and that one: no batch is padded to twice its size."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def image_shape(metadata: ModelMetadata) -> tuple[int, ...]:
    """Return the shape of an image in a service's batches: also for raw input all of them are decoded to one size."""
    steps = metadata.preprocessing
    raw = metadata.input == "raw"
    return (*steps.crop.cover, steps.channels) if raw else (steps.channels, steps.height, steps.width)


def open_for_batches(
    model: Path | bytes, provider: str, metadata: ModelMetadata, largest: int, threads: int = 0
) -> runtime.OnnxSession | BoundSession:
    """Load a model to serve; on CUDA its buffers are bound, and it runs as CUDA graphs if all of its nodes are there.

    Args:
        model: The file, or its content.
        provider: ONNX Runtime's name of the execution provider.
        metadata: The file's metadata.
        largest: The largest batch size.
        threads: On the CPU; 0 for as many as there are cores.

    Raises:
        UserError: ONNX Runtime cannot run it.
    """
    if provider != runtime.CUDA:  # a CPU would compute the padding, and TensorRT has graphs of its own
        return runtime.create_session(model, provider, threads=threads)
    if metadata.input != "raw":  # whose weights follow from the image's size, which ONNX Runtime computes on the CPU
        try:
            options = runtime.CUDA_OPTIONS | {"enable_cuda_graph": "1"}
            return _prepared(runtime.create_session(model, provider, options), metadata, largest, captures=True)
        except UserError as error:
            reason = error.cause
        # Not within `except`: the error holds the session, and both would be in the GPU's memory.
        logger.warning("Serving without CUDA graphs: %s", reason)
    return _prepared(runtime.create_session(model, provider), metadata, largest)


def _prepared(
    session: runtime.OnnxSession, metadata: ModelMetadata, largest: int, captures: bool = False
) -> BoundSession:
    bound = BoundSession(session, image_shape(metadata), batch_sizes(largest), captures)
    bound.prepare()
    return bound
