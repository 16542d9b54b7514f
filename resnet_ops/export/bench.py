"""The whole of `resnet-ops bench`: speed of an exported file and of the same network in torch.

Each backend computes in a worker process, which is in `bench_worker`; here they take turns.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pydantic import Field

from resnet_ops.environment import safe_path
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import claimed_network, runtime, untrusted
from resnet_ops.export.bench_worker import BenchCandidate, list_candidates, run_worker
from resnet_ops.export.config import BenchConfig
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.export.metadata import ModelMetadata, Precision
from resnet_ops.files import Place
from resnet_ops.results import Result

ROUNDS = 5  # into which the seconds of each candidate are divided


@dataclass(frozen=True)
class Measurement:
    """The times of one candidate with one batch size: seconds of each call in each round; or an error."""

    candidate: BenchCandidate
    batch: int
    rounds: tuple[tuple[float, ...], ...] = ()
    memory_bytes: int | None = None
    error: str = ""

    @property
    def calls(self) -> list[float]:
        """Return the seconds of each call, sorted."""
        return sorted(seconds for calls in self.rounds for seconds in calls)

    @property
    def p50_ms(self) -> float:
        """Return the median latency."""
        return 1e3 * statistics.median(self.calls)

    @property
    def p99_ms(self) -> float:
        """Return the 99th percentile of the latency; of fewer than 100 calls, the maximum."""
        calls = self.calls
        return 1e3 * calls[-(-99 * len(calls) // 100) - 1]

    @property
    def images_per_second(self) -> float:
        """Return the throughput at the median latency."""
        return 1e3 * self.batch / self.p50_ms

    @property
    def speeds(self) -> list[float]:
        """Return the throughput in images per second of each round, at its median latency."""
        return [self.batch / statistics.median(calls) for calls in self.rounds]


class BenchRow(Result):
    """The speed of one backend with one batch size; if it failed, an error and no times."""

    batch: int = Field(description="Images per call.")
    name: str = Field(description="The backend, such as ONNX Runtime or torch eager.")
    arithmetic: str = Field(description="fp32, tf32 or fp16.")
    p50_ms: float | None = Field(default=None, description="Median latency of a call in milliseconds.")
    p99_ms: float | None = Field(default=None, description="Its 99th percentile; of fewer than 100 calls the longest.")
    images_per_second: float | None = Field(default=None, description="At the median latency.")
    ratio: float | None = Field(default=None, description="images_per_second over that of torch eager.")
    memory_bytes: int | None = Field(default=None, description="Peak memory beyond that of the libraries.")
    calls: int = Field(default=0, description="Calls that were measured.")
    error: str = Field(default="", exclude_if=lambda error: not error, description="Why it failed, if it did.")

    @classmethod
    def of(cls, measurement: Measurement, eager: Measurement | None) -> "BenchRow":
        """Return the row of a measurement, with its ratio to torch eager."""
        candidate = measurement.candidate
        named: dict[str, Any] = {
            "batch": measurement.batch,
            "name": candidate.name,
            "arithmetic": candidate.arithmetic,
        }
        if measurement.error:
            return cls(**named, error=measurement.error)
        return cls(
            **named,
            p50_ms=measurement.p50_ms,
            p99_ms=measurement.p99_ms,
            images_per_second=measurement.images_per_second,
            ratio=None if eager is None else measurement.images_per_second / eager.images_per_second,
            memory_bytes=measurement.memory_bytes,
            calls=len(measurement.calls),
        )


class BenchResult(Result):
    """The speed of a file, beside torch."""

    rows: tuple[BenchRow, ...] = Field(description="A row for each batch size and backend.")
    file: Place = Field(description="The ONNX file.")
    model: str = Field(description="Network, such as resnet20.")
    precision: Precision = Field(description="fp32, fp16 or int8.")
    provider: str = Field(description="ONNX Runtime's execution provider.")
    metadata: ModelMetadata = Field(exclude=True, description="The file's metadata.")


def bench(config: BenchConfig, on_progress: Callable[[str], None] = lambda _: None) -> BenchResult:
    """Measure the speed of a file and of torch with each batch size.

    Args:
        config: The options.
        on_progress: Called with what is being done.

    Raises:
        UserError: The file cannot be used, is not of the network that it names, or failed with every batch size.
    """
    config = with_exported_file(config)
    model, metadata = untrusted.read_checked(config.file, config.provider)
    claimed_network.check_layers(config.file, model, metadata)
    del model  # as large as the file
    provider = runtime.resolve_provider(config.provider, metadata.precision)
    candidates = list_candidates(config.file.absolute(), metadata, provider, config.compile)
    rows: list[BenchRow] = []
    errors: list[str] = []
    for batch in config.batches:
        measurements = measure(candidates, batch, config.seconds, on_progress)
        errors += [measurement.error for measurement in measurements if measurement.candidate.engine == "onnx"]
        rows += compare(measurements)
    if all(errors):
        raise UserError(f"{config.file} could not be measured: {errors[0].rstrip('.')}.", exit_code=WORK_FAILED)
    return BenchResult(
        rows=tuple(rows),
        file=config.file.absolute(),
        model=metadata.model,
        precision=metadata.precision,
        provider=provider,
        metadata=metadata,
    )


def measure(
    candidates: Sequence[BenchCandidate],
    batch: int,
    seconds: float,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Measure each candidate for so many seconds, in turns, so that other load slows all of them alike.

    One that fails while the others are loaded may lack memory for that reason: it is measured again, alone.
    """
    measurements = _measure_in_turns(candidates, batch, seconds, on_progress)
    if len(measurements) == 1:
        return measurements
    return [
        _measure_in_turns([measurement.candidate], batch, seconds, on_progress)[0] if measurement.error else measurement
        for measurement in measurements
    ]


def _measure_in_turns(
    candidates: Sequence[BenchCandidate], batch: int, seconds: float, on_progress: Callable[[str], None]
) -> list[Measurement]:
    """Measure in rounds, every other one in reverse order, so that none is always measured after the same one."""
    workers: list[_Worker] = []
    try:
        for candidate in candidates:
            on_progress(f"batch size {batch}: preparing {candidate.name}")
            workers.append(_Worker(candidate, batch))
        for number in range(ROUNDS):
            on_progress(f"batch size {batch}: measuring, round {number + 1} of {ROUNDS}")
            for worker in workers[:: -1 if number % 2 else 1]:
                worker.measure_round(seconds / ROUNDS)
        return [worker.measurement() for worker in workers]
    finally:
        for worker in workers:
            worker.stop()


def compare(measurements: Sequence[Measurement]) -> Iterator[BenchRow]:
    """Yield the rows of one batch size. Of torch eager's memory formats only the faster one, the reference, is kept."""
    fastest: dict[str, Measurement] = {}
    for measurement in measurements:
        arithmetic = measurement.candidate.arithmetic
        if measurement.candidate.engine == "eager" and not measurement.error:
            other = fastest.get(arithmetic, measurement)
            fastest[arithmetic] = max(measurement, other, key=lambda each: each.images_per_second)
    for measurement in measurements:
        eager = fastest.get(measurement.candidate.arithmetic)
        if measurement.candidate.engine != "eager" or eager in (None, measurement):
            yield BenchRow.of(measurement, eager)


class _Worker:
    """The process of a candidate, as its parent sees it."""

    def __init__(self, candidate: BenchCandidate, batch: int) -> None:
        self.candidate, self.batch = candidate, batch
        self.rounds: list[tuple[float, ...]] = []
        self.memory_bytes: int | None = None
        self.error = ""
        self.connection, child = multiprocessing.Pipe()
        self.process = _start(candidate, batch, child)
        child.close()
        if (ready := self._receive()) is not None:
            self.memory_bytes, self.error = ready[0], ready[1] or ""

    def measure_round(self, seconds: float) -> None:
        """Let it measure its calls for so many seconds, unless it has failed."""
        if self.error:
            return
        self.connection.send(seconds)
        if (calls := self._receive()) is not None:
            self.rounds.append(tuple(calls))

    def measurement(self) -> Measurement:
        """Return what it has measured."""
        return Measurement(self.candidate, self.batch, tuple(self.rounds), self.memory_bytes, self.error)

    def stop(self) -> None:
        """Stop the process."""
        if self.process.is_alive() and not self.error:
            self.connection.send(None)
            self.process.join(10)
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _receive(self) -> Any:
        """Return a message of `run_worker`, or None, with `error` set, if the process has died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            self.error = (
                f"its process was killed (signal {-code}): out of memory?" if code < 0 else "its process exited"
            )
            return None


def _start(candidate: BenchCandidate, batch: int, connection: Connection) -> BaseProcess:
    # Forked from a server that has imported both libraries, but started no threads of theirs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "onnxruntime", "resnet_ops.export.bench_worker"])
    process = context.Process(target=run_worker, args=(candidate, batch, connection), daemon=True)
    with safe_path():  # of the server, which the first one starts
        process.start()
    return process
