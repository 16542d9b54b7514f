"""Images that do not fit in memory: Ray Data reads and decodes them while the network trains.

The order is ours (`order`), so that a streamed run computes what one in memory does and resumes as exactly. Ray Data's
tasks give pieces of it, in order, decoded; here batches are put together from them, ahead of need.
"""

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import Datasource, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayTaskError
from torch import Tensor

from resnet_ops import files
from resnet_ops.data import sampling
from resnet_ops.data.cache import DecodeOptions, check_broken, check_too_many
from resnet_ops.data.dataset import EncodedImages, Split
from resnet_ops.data.decode import CropSpec, DecodeError, decode
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.records import BadImage

PIECE_BYTES = 16 * 2**20  # of decoded images that a task gives: 85 at 224x224, half a second of work
PIECE_IMAGES = 1024  # at most, where they are small
WHOLE_BYTES = 64 * 2**20  # of decoded images that a pass may begin with: all, where each batch is from all row groups
WINDOW_BYTES = 512 * 2**20  # of decoded images of row groups that are mixed where there are more
PIECES_AHEAD = 4  # a core
BATCHES_AHEAD = 2
CLOSE_S = 10.0  # for the batch in hand; a file server that hangs is not waited for

logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells of each pass


@dataclass(frozen=True)
class StreamedImages:
    """One split, read and decoded anew at each pass.

    Args:
        encoded: The images.
        wanted: How they are to be decoded; where a broken one is no error, the next good one of the batch replaces it.
        device: Where batches are wanted.
        labels: (N,) int64, on the device.
        tasks: How many decode at once, on this machine.
        log_event: Told of the first broken image.
        broken: Those that were met, and why.
    """

    encoded: EncodedImages
    wanted: DecodeOptions
    device: torch.device
    labels: Tensor
    tasks: int
    log_event: Callable[[str], None]
    broken: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, source: Source, split: Split, device: torch.device, log_event: Callable[[str], None]
    ) -> "StreamedImages":
        """A split of a source, decoded by as many tasks as this worker has threads: twice as many from a bucket."""
        encoded = source.encoded(split)
        labels = torch.from_numpy(encoded.labels).to(device)
        tasks = torch.get_num_threads() * (2 if files.is_remote(source.files[0].root) else 1)
        return cls(encoded, source.wanted(split), device, labels, tasks, log_event)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.wanted.frame.height, self.wanted.frame.width

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """The broken images that were met so far."""
        return tuple(BadImage(name=self.encoded.name(row), reason=why) for row, why in self.broken.items())

    @functools.cached_property
    def _units(self) -> np.ndarray | None:
        """The units that images are read in, where they are more than is read at once."""
        return self.encoded.units if len(self) * self._image_bytes > WHOLE_BYTES else None

    @functools.cached_property
    def _sent(self) -> "ray.ObjectRef[EncodedImages]":
        return ray.put(self.encoded)

    @property
    def _image_bytes(self) -> int:
        return int(np.prod(self.wanted.frame.shape))

    def shares(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """One worker's rows of each batch, in an order that follows from the generator's state.

        It is that of images in memory, but for Parquet whose decoded images are more than `WHOLE_BYTES`: those are
        mixed within a window of row groups, of `WINDOW_BYTES` or of a quarter of them all, so that each group is read
        about once (`order.shares_by_unit`).
        """
        if self._units is not None:
            units = int(self._units[-1]) + 1
            window = max(1, min(units // 4, WINDOW_BYTES * units // (len(self) * self._image_bytes)))
            return sampling.shares_by_unit(self._units, window, batch_size, rank, world_size, generator)
        return sampling.shares(torch.randperm(len(self), generator=generator), batch_size, rank, world_size)

    def in_order(self, batch: int, rank: int, world_size: int) -> list[Tensor]:
        """One worker's share of all rows, in batches."""
        return sampling.sequential(len(self), batch, rank, world_size, contiguous=self._units is not None)

    def batches(self, shares: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels of each of `shares`, on the device; `beat` is called at the start and with each piece.

        A timer's beat would hide a file server that no longer answers.

        Raises:
            UserError: An image is broken and that is an error, or too many are.
            PausedError: The bucket is out of reach.
        """
        beat()
        for pixels, rows in ahead(self._assembled(shares, beat), BATCHES_AHEAD):
            x, rows = (part.to(self.device, non_blocking=True) for part in (pixels, rows))
            yield x, self.labels.index_select(0, rows)

    def _assembled(self, shares: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (n, H, W, C) of each of `shares`, and the rows that they are of."""
        decoded = self._decoded(np.concatenate([share.numpy() for share in shares]) if shares else np.empty(0, int))
        there: dict[int, np.ndarray] = {}
        if on_gpu := self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a new thread is on the first one, and would take memory there
        for share in shares:
            rows = share.tolist()
            for row in rows:
                while row not in there and row not in self.broken:
                    there.update(next(decoded))
                    beat()
            good = [row for row in rows if row in there]
            rows = [row if row in there else _next(good, row) for row in rows]
            pixels = torch.zeros((len(rows), *self.wanted.frame.shape), dtype=torch.uint8, pin_memory=on_gpu)
            if good:
                np.stack([there[row] for row in rows], out=pixels.numpy())
            for row in good:
                del there[row]
            yield pixels, torch.tensor(rows)

    def _decoded(self, rows: np.ndarray) -> Iterator[dict[int, np.ndarray]]:
        """These images, about in this order, some at a time; what is broken goes to `broken` instead."""
        pieces = self._pieces(rows)
        data = ray.data.read_datasource(
            Pieces(self._sent, self.wanted.frame, pieces),
            # Workers have taken all cores of their machines, to share them with these.
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            concurrency=min(self.tasks, len(pieces)),
            override_num_blocks=len(pieces),
        )
        data.context.enable_progress_bars = False
        data.context.print_on_execution_start = False
        data.context.execution_options.preserve_order = True
        ahead_bytes = self.tasks * PIECES_AHEAD * PIECE_BYTES
        data.context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead_bytes)
        tables = iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
        try:
            for table in tables:
                pixels = table.column("pixels").combine_chunks().to_numpy_ndarray()
                numbers, whys = table.column("row").to_pylist(), table.column("why").to_pylist()
                self._note({row: why for row, why in zip(numbers, whys, strict=True) if why is not None})
                # Copied, or one image would hold its whole piece in Ray's memory.
                yield {row: pixels[i].copy() for i, row in enumerate(numbers) if whys[i] is None}
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows for each task, in the order in which they are first needed; where there are units, of one only."""
        size = min(PIECE_IMAGES, max(1, PIECE_BYTES // self._image_bytes))
        if (units := self.encoded.units) is None:
            wholes = [rows]
        else:
            _, firsts, which = np.unique(units[rows], return_index=True, return_inverse=True)
            needed = firsts[which]  # by whom each row's unit is first needed
            by_unit = np.argsort(needed, kind="stable")
            wholes = np.split(rows[by_unit], np.flatnonzero(np.diff(needed[by_unit])) + 1)
        return [whole[start : start + size] for whole in wholes for start in range(0, len(whole), size)]

    def _note(self, broken: dict[int, str]) -> None:
        if broken and not self.broken:
            row, why = next(iter(broken.items()))
            if self.wanted.strict:
                raise check_broken(BadImage(name=self.encoded.name(row), reason=why))
            self.log_event(
                f"Cannot decode {self.encoded.name(row)}: {why}. Images that cannot be decoded are replaced by others."
            )
        if broken:
            self.broken.update(broken)
            check_too_many(self.encoded, self.wanted.class_names, self.broken)


def _next(good: list[int], row: int) -> int:
    """The good image of a batch that takes the place of a broken one; where there is none, it stays, black."""
    return good[row % len(good)] if good else row


class Pieces(Datasource):
    """Images, decoded, as Ray Data reads them: a piece a task."""

    def __init__(self, encoded: "ray.ObjectRef[EncodedImages]", frame: CropSpec, pieces: Sequence[np.ndarray]) -> None:
        self.encoded, self.frame, self.pieces = encoded, frame, pieces

    def estimate_inmemory_data_size(self) -> int:
        """Of all of them, in bytes."""
        return sum(len(piece) for piece in self.pieces) * int(np.prod(self.frame.shape))

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002
        """A task for each piece, however many Ray Data would like."""
        return [self._task(piece) for piece in self.pieces]

    def _task(self, piece: np.ndarray) -> ReadTask:
        size = len(piece) * int(np.prod(self.frame.shape))
        metadata = BlockMetadata(num_rows=len(piece), size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(functools.partial(decode_piece, self.encoded, self.frame, piece), metadata)


def decode_piece(encoded: "ray.ObjectRef[EncodedImages]", frame: CropSpec, rows: np.ndarray) -> Iterator[pa.Table]:
    """Read and decode some images: the numbers of the rows, their pixels, and why one could not be decoded."""
    pixels = np.zeros((len(rows), *frame.shape), np.uint8)
    whys: list[str | None] = [None] * len(rows)
    for index, image in enumerate(fetched(encoded).read(rows.tolist())):
        try:
            pixels[index] = decode(image, frame)
        except DecodeError as error:
            whys[index] = str(error)
    columns = {
        "row": rows,
        "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        "why": pa.array(whys, pa.string()),
    }
    yield pa.table(columns)


@functools.lru_cache(maxsize=2)
def fetched(encoded: "ray.ObjectRef[EncodedImages]") -> EncodedImages:
    """What is behind a reference, unpickled once in each process: a million names take half a second."""
    found: EncodedImages = ray.get(encoded)
    return found


def ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Have another thread take `items` from a generator, up to `count` of them before they are asked for."""
    pool = ThreadPoolExecutor(1, "ahead")
    pending: deque[Future[Any]] = deque(pool.submit(next, items, None) for _ in range(count + 1))
    try:
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item
    finally:
        for each in pending:
            each.cancel()
        closed = pool.submit(items.close)  # type: ignore[attr-defined]  # only where it runs may a generator be closed
        pool.shutdown(wait=False)
        wait([closed], CLOSE_S)  # whoever goes on may shut down Ray, which ends the process if it is still used
