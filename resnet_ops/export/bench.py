"""How fast an exported file is, beside the same network in torch: latency, images a second, memory."""

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pydantic import Field

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.bench_worker import BenchCandidate, candidates, work
from resnet_ops.export.config import BenchConfig
from resnet_ops.export.metadata import ModelMetadata, Precision
from resnet_ops.files import Place
from resnet_ops.results import Result

ROUNDS = 5  # the seconds of each are cut into so many turns


@dataclass(frozen=True)
class Measurement:
    """How one contender did with one batch size: seconds of each call, a list for each round; or why it did not."""

    contender: BenchCandidate
    batch: int
    rounds: tuple[tuple[float, ...], ...] = ()
    memory_bytes: int | None = None
    error: str = ""

    @property
    def calls(self) -> list[float]:
        """Seconds of each call, the quickest first."""
        return sorted(seconds for turn in self.rounds for seconds in turn)

    @property
    def p50_ms(self) -> float:
        """The median."""
        return 1e3 * statistics.median(self.calls)

    @property
    def p99_ms(self) -> float:
        """As long as 99 of 100 calls take at most; of fewer, the slowest."""
        calls = self.calls
        return 1e3 * calls[-(-99 * len(calls) // 100) - 1]

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return 1e3 * self.batch / self.p50_ms

    @property
    def speeds(self) -> list[float]:
        """Images a second in each round, at its median."""
        return [self.batch / statistics.median(turn) for turn in self.rounds]


@dataclass(frozen=True)
class MeasurementAndRatio:
    """A line of the table; `ratio` is images/s over those of torch eager, in the faster of its memory formats."""

    measured: Measurement
    ratio: float | None


class BenchRow(Result):
    """How one backend did with one batch size, or why it did not; then it has an error, and no times."""

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
    def of(cls, row: MeasurementAndRatio) -> "BenchRow":
        """Return a line's numbers."""
        one = row.measured
        named: dict[str, Any] = {"batch": one.batch, "name": one.contender.name, "arithmetic": one.contender.arithmetic}
        if one.error:
            return cls(**named, error=one.error)
        return cls(
            **named,
            p50_ms=one.p50_ms,
            p99_ms=one.p99_ms,
            images_per_second=one.images_per_second,
            ratio=row.ratio,
            memory_bytes=one.memory_bytes,
            calls=len(one.calls),
        )


class BenchResult(Result):
    """The speed of a file, beside torch."""

    rows: tuple[BenchRow, ...] = Field(description="A row for each batch size and backend.")
    file: Place = Field(description="The ONNX file.")
    model: str = Field(description="Network, such as resnet20.")
    precision: Precision = Field(description="fp32, fp16 or int8.")
    provider: str = Field(description="ONNX Runtime's execution provider.")
    metadata: ModelMetadata = Field(exclude=True, description="The file's metadata.")


def bench(config: BenchConfig, warn: Callable[[str], None] = lambda _: None) -> BenchResult:
    """Measure a file and torch, a batch size after the other; `notice` is told what is being done.

    Raises:
        UserError: The file cannot be used, or ran in no way with any batch size.
    """
    metadata = untrusted.open_file(config.file)
    provider = runtime.choose_provider(config.provider)
    everyone = candidates(config.file.absolute(), metadata, provider, config.compile)
    rows: list[MeasurementAndRatio] = []
    for batch in config.batches:
        rows += compare(measure(everyone, batch, config.seconds, warn))
    failed = [row.measured.error for row in rows if row.measured.contender.engine == "onnx"]
    if all(failed):
        raise UserError(f"{config.file} could not be measured: {failed[0].rstrip('.')}.", exit_code=WORK_FAILED)
    return BenchResult(
        rows=tuple(map(BenchRow.of, rows)),
        file=config.file.absolute(),
        model=metadata.model,
        precision=metadata.precision,
        provider=provider,
        metadata=metadata,
    )


def measure(
    everyone: Sequence[BenchCandidate], batch: int, seconds: float, warn: Callable[[str], None] = lambda _: None
) -> list[Measurement]:
    """Measure contenders for `seconds` each, in turn, so that the machine's moods fall on all alike.

    One that fails while the others are loaded may have found no memory beside them: it is tried once more, alone.
    """
    found = _race(everyone, batch, seconds, warn)
    if len(found) == 1:
        return found
    return [_race([one.contender], batch, seconds, warn)[0] if one.error else one for one in found]


def _race(
    everyone: Sequence[BenchCandidate], batch: int, seconds: float, warn: Callable[[str], None]
) -> list[Measurement]:
    """Every other round goes backwards, so that none is always measured after the same one."""
    racing = []
    try:
        for contender in everyone:
            warn(f"batch size {batch}: preparing {contender.name}")
            racing.append(_Racing(contender, batch))
        for turn in range(ROUNDS):
            warn(f"batch size {batch}: measuring, round {turn + 1} of {ROUNDS}")
            for one in racing[:: -1 if turn % 2 else 1]:
                one.turn(seconds / ROUNDS)
        return [one.measured() for one in racing]
    finally:
        for one in racing:
            one.end()


def compare(measured: Sequence[Measurement]) -> Iterator[MeasurementAndRatio]:
    """One batch size's lines. Of torch eager's memory formats the faster one stays, to compare others with."""
    fastest: dict[str, Measurement] = {}
    for one in measured:
        arithmetic = one.contender.arithmetic
        if one.contender.engine == "eager" and not one.error:
            fastest[arithmetic] = max(one, fastest.get(arithmetic, one), key=lambda each: each.images_per_second)
    for one in measured:
        eager = fastest.get(one.contender.arithmetic)
        if one.contender.engine == "eager" and eager not in (None, one):
            continue
        yield MeasurementAndRatio(
            one, None if one.error or eager is None else one.images_per_second / eager.images_per_second
        )


class _Racing:
    """A contender's process, seen from here."""

    def __init__(self, contender: BenchCandidate, batch: int) -> None:
        self.contender, self.batch = contender, batch
        self.rounds: list[tuple[float, ...]] = []
        self.memory_bytes: int | None = None
        self.error = ""
        self.connection, theirs = multiprocessing.Pipe()
        self.process = _start(contender, batch, theirs)
        theirs.close()
        if (told := self._hear()) is not None:
            self.memory_bytes, self.error = told[0], told[1] or ""

    def turn(self, seconds: float) -> None:
        """Have it measure, if it can."""
        if self.error:
            return
        self.connection.send(seconds)
        if (took := self._hear()) is not None:
            self.rounds.append(tuple(took))

    def measured(self) -> Measurement:
        """What came of it."""
        return Measurement(self.contender, self.batch, tuple(self.rounds), self.memory_bytes, self.error)

    def end(self) -> None:
        """Let it go."""
        if self.process.is_alive() and not self.error:
            self.connection.send(None)
            self.process.join(10)
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _hear(self) -> Any:
        """What `work` sends: memory and error, then the seconds of each turn's calls; None from a process that died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            self.error = (
                f"its process was killed (signal {-code}): out of memory?" if code < 0 else "its process exited"
            )
            return None


def _start(contender: BenchCandidate, batch: int, theirs: Connection) -> BaseProcess:
    # A server that has imported both libraries, and started nothing of theirs, is forked for each.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "onnxruntime", "resnet_ops.export.bench_worker"])
    process = context.Process(target=work, args=(contender, batch, theirs), daemon=True)
    process.start()
    return process
