"""A step of training as CUDA graphs: captured once, then replayed at the cost of the kernels alone.

A captured function reads and writes tensors at the addresses that they had then. So all that differs from step to step
is in `StepInputs`, which stay where they are; on a CPU the very same function runs, uncaptured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_ops.data.batch_ring import Batch
from resnet_ops.errors import WORK_FAILED, UserError

WARM_UP_STEPS = 4  # before the capture: they make handles, momentum and compiled kernels, and choose cuDNN's algorithms


class StepInputs:
    """Holds what differs from step to step: a row of some columns, and images where a step does not take its own.

    On CUDA columns and images are copied into tensors that stay in place.

    Args:
        device: That of the steps.
        rows: The most steps whose columns are sent at once.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        self.device, self.rows = device, rows
        self.columns: dict[str, Tensor] = {}
        self.images: Batch | None = None
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # the row that is next
        self.loaded: torch.cuda.Event | None = None  # that the columns sent last have arrived

    def load(self, columns: Mapping[str, Tensor]) -> None:
        """Send the columns (steps, ...) of the next steps, at most `rows`.

        On CUDA wait until the GPU has begun with the columns sent before: it may be that far behind, and no farther.
        """
        if self.device.type == "cpu":
            self.columns = dict(columns)
        else:
            for name, rows in columns.items():
                if name not in self.columns:
                    shape = (self.rows, *rows.shape[1:])
                    self.columns[name] = torch.empty(shape, dtype=rows.dtype, device=self.device)
                self.columns[name][: len(rows)].copy_(rows.pin_memory(), non_blocking=True)
            if self.loaded is not None:
                self.loaded.synchronize()
            self.loaded = torch.cuda.Event()
            self.loaded.record()
        self.step.zero_()

    def receive(self, images: Batch | None) -> None:
        """Take in the images of the next step, on the device; None where it takes its own."""
        if images is None or self.device.type == "cpu":
            self.images = images
            return
        if self.images is None:
            pixels, labels, aspects = images
            kept = None if aspects is None else torch.empty_like(aspects)
            self.images = Batch(torch.empty_like(pixels), torch.empty_like(labels), kept)
        for own, part in zip(self.images, images, strict=True):
            if own is not None and part is not None:
                own.copy_(part, non_blocking=True)

    def row(self) -> dict[str, Tensor]:
        """Return the row of the next step; part of what is captured."""
        return {name: rows.index_select(0, self.step.view(1))[0] for name, rows in self.columns.items()}

    def advance(self) -> None:
        """Go on to the next row; part of what is captured."""
        self.step += 1


@dataclass(frozen=True)
class Part:
    """A part of a step; one that waits for other processes is not captured."""

    run: Callable[[], None]
    capturable: bool = True


class StepRunner:
    """Runs a step, and replays it once it is captured.

    The first steps run as they are. A step that cannot be captured after them goes on as it is, and why is logged.

    Args:
        device: That of the steps.
        obstacle: Why they are not captured; None where they are to be.
        required: Whether a step that cannot be captured is an error.
        log_event: Called with the reason where it could not be captured.
    """

    def __init__(
        self,
        device: torch.device,
        obstacle: str | None,
        required: bool = False,
        log_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.why_not = obstacle
        self.required, self.log_event = required, log_event
        self.stream = torch.cuda.Stream(device) if obstacle is None else None
        self.warm_up_steps = WARM_UP_STEPS
        self.graphs: list[torch.cuda.CUDAGraph | None] = []

    @property
    def captured(self) -> bool:
        """Return whether steps are replayed by now."""
        return bool(self.graphs)

    def __call__(self, parts: Sequence[Part]) -> None:
        """Run the next step, of the same parts each time.

        Raises:
            UserError: It could not be captured, and that is required.
        """
        if self.stream is not None and not self.captured:
            if self.warm_up_steps:
                self.warm_up_steps -= 1
                self.stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.stream):
                    _run(parts)
                torch.cuda.current_stream().wait_stream(self.stream)
                return
            self._capture(parts, self.stream)
        if not self.captured:
            _run(parts)
            return
        for part, graph in zip(parts, self.graphs, strict=True):
            if graph is None:
                part.run()
            else:
                graph.replay()

    def _capture(self, parts: Sequence[Part], stream: torch.cuda.Stream) -> None:
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # which a capture that fails does not return to
                self.graphs = _captured(parts, stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # What ended the capture, and not the error that it did not end well.
            self.why_not = str(error.__context__ or error).strip().splitlines()[0]
            self.stream = None
            if self.required:
                raise UserError(
                    f"--cuda-graph on: the step cannot be captured: {self.why_not}", "Use auto.", WORK_FAILED
                ) from error
            self.log_event(f"Steps are not captured in a CUDA graph: {self.why_not}")


def _run(parts: Sequence[Part]) -> None:
    for part in parts:
        part.run()


def _captured(parts: Sequence[Part], stream: torch.cuda.Stream) -> list[torch.cuda.CUDAGraph | None]:
    """Return a graph of each part that is captured."""
    pool = torch.cuda.graph_pool_handle()
    graphs: list[torch.cuda.CUDAGraph | None] = []
    for part in parts:
        graph = torch.cuda.CUDAGraph() if part.capturable else None
        if graph is not None:
            # Other threads go on: they decode, send images and write checkpoints.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                part.run()
        graphs.append(graph)
    return graphs
