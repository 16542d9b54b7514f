"""Images that do not fit in memory: Ray Data reads and decodes them while the network trains.

The order is that of sampling.py, so that a streamed run computes what one in memory does and resumes as exactly. Ray
Data's tasks return pieces of it, in order, decoded; batches are assembled from them here, in advance.
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
from resnet_ops.data.dataset import EncodedImages, Split
from resnet_ops.data.decode import CropSpec, DecodeError, decode_with_aspect
from resnet_ops.data.loader import Batch
from resnet_ops.data.parallel_decode import DecodeOptions, broken_image_error, check_broken_share
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.run_records import BadImage

PIECE_BYTES = 16 * 2**20  # of decoded images that a task returns: 85 at 224x224, half a second of work
PIECE_IMAGES = 1024  # at most, where they are small
FULL_SHUFFLE_BYTES = 64 * 2**20  # of decoded images; up to this, batches of Parquet are drawn from all row groups
WINDOW_BYTES = 512 * 2**20  # of decoded images of the row groups that are mixed, beyond
PIECES_AHEAD = 4  # per task
BATCHES_AHEAD = 2
CLOSE_S = 10.0  # for the batch that is being assembled; a file server that hangs is not waited for

logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs each epoch


@dataclass(frozen=True)
class StreamedImages:
    """One split that is read and decoded again in each epoch.

    Args:
        encoded: The images.
        options: How they are decoded; where a broken one is no error, a good one of the batch replaces it.
        device: The device of the batches.
        labels: (N,) int64, on the device.
        tasks: How many tasks decode at once, on this machine.
        log_event: Called with a message at the first broken image.
        broken: For each row that could not be decoded so far, the reason.
    """

    encoded: EncodedImages
    options: DecodeOptions
    device: torch.device
    labels: Tensor
    tasks: int
    log_event: Callable[[str], None]
    broken: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, source: Source, split: Split, device: torch.device, log_event: Callable[[str], None]
    ) -> "StreamedImages":
        """Stream a split of a source, with as many tasks as this worker has threads, or twice as many from a bucket."""
        encoded = source.encoded(split)
        labels = torch.from_numpy(encoded.labels).to(device)
        tasks = torch.get_num_threads() * (2 if files.is_remote(source.files[0].root) else 1)
        return cls(encoded, source.decode_options(split), device, labels, tasks, log_event)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.options.crop.height, self.options.crop.width

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Images that could not be decoded so far."""
        return tuple(BadImage(name=self.encoded.name(row), reason=reason) for row, reason in self.broken.items())

    @functools.cached_property
    def _row_groups(self) -> np.ndarray | None:
        """The row groups of the images, where these are too many to be shuffled as a whole."""
        return self.encoded.row_groups if len(self) * self._image_bytes > FULL_SHUFFLE_BYTES else None

    @functools.cached_property
    def _encoded_ref(self) -> "ray.ObjectRef[EncodedImages]":
        return ray.put(self.encoded)

    @property
    def _image_bytes(self) -> int:
        return int(np.prod(self.options.crop.shape))

    def shuffled_batches(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return one rank's rows of each batch, in an order that follows from the generator's state.

        It is that of images in memory, but for Parquet whose decoded images are more than `FULL_SHUFFLE_BYTES`: those
        are mixed within a window of row groups, of `WINDOW_BYTES` or of a quarter of them all, so that each group is
        read about once (`sampling.rank_batches_by_row_group`).
        """
        if self._row_groups is not None:
            count = int(self._row_groups[-1]) + 1
            window = max(1, min(count // 4, WINDOW_BYTES * count // (len(self) * self._image_bytes)))
            return sampling.rank_batches_by_row_group(self._row_groups, window, batch_size, rank, world_size, generator)
        return sampling.rank_batches(torch.randperm(len(self), generator=generator), batch_size, rank, world_size)

    def sequential_batches(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        """Return one rank's share of all rows, ascending, in batches."""
        contiguous = self._row_groups is not None
        return sampling.sequential_batches(len(self), batch_size, rank, world_size, contiguous)

    def load_batches(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[Batch]:
        """Yield each batch of rows, on the device; call `beat` at the start and with each piece.

        A timer's beat would hide a file server that no longer answers.

        Raises:
            UserError: An image is broken and that is an error, or too many are.
            PausedError: The bucket is out of reach.
        """
        beat()
        for parts in prefetch(self._assemble(batches, beat), BATCHES_AHEAD):
            pixels, rows, aspects = (part.to(self.device, non_blocking=True) for part in parts)
            yield Batch(pixels, self.labels.index_select(0, rows), aspects if self.options.crop.whole else None)

    def _assemble(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the pixels (n, H, W, C) of each batch, the rows that they are of, and the aspects of the images."""
        pieces = self._decode(np.concatenate([batch.numpy() for batch in batches]) if batches else np.empty(0, int))
        decoded: dict[int, tuple[np.ndarray, float]] = {}
        if on_gpu := self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a new thread is on the first one, and would take memory of it
        for batch in batches:
            rows = batch.tolist()
            for row in rows:
                while row not in decoded and row not in self.broken:
                    decoded.update(next(pieces))
                    beat()
            good = [row for row in rows if row in decoded]
            rows = [row if row in decoded else _replacement(good, row) for row in rows]
            pixels = torch.zeros((len(rows), *self.options.crop.shape), dtype=torch.uint8, pin_memory=on_gpu)
            if good:
                np.stack([decoded[row][0] for row in rows], out=pixels.numpy())
            aspects = torch.tensor([decoded[row][1] if good else 1.0 for row in rows])
            for row in good:
                del decoded[row]
            yield pixels, torch.tensor(rows), aspects

    def _decode(self, rows: np.ndarray) -> Iterator[dict[int, tuple[np.ndarray, float]]]:
        """Yield pixels and aspect of these rows, about in this order, some at a time; add broken ones to `broken`."""
        pieces = self._pieces(rows)
        data = ray.data.read_datasource(
            DecodedPieces(self._encoded_ref, self.options.crop, pieces),
            # The training workers reserve all cores of their machines, and share them with these tasks.
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
                piece, aspects, reasons = (table.column(name).to_pylist() for name in ("row", "aspect", "reason"))
                self._add_broken(
                    {row: reason for row, reason in zip(piece, reasons, strict=True) if reason is not None}
                )
                # Copied, or one image would hold its whole piece in Ray's memory.
                yield {row: (pixels[i].copy(), aspects[i]) for i, row in enumerate(piece) if reasons[i] is None}
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return each task's rows, in the order in which they are first needed; in Parquet of one row group only."""
        size = min(PIECE_IMAGES, max(1, PIECE_BYTES // self._image_bytes))
        if (row_groups := self.encoded.row_groups) is None:
            runs = [rows]
        else:
            _, firsts, inverse = np.unique(row_groups[rows], return_index=True, return_inverse=True)
            first_use = firsts[inverse]  # where the row group of each row is first needed
            by_group = np.argsort(first_use, kind="stable")
            runs = np.split(rows[by_group], np.flatnonzero(np.diff(first_use[by_group])) + 1)
        return [run[start : start + size] for run in runs for start in range(0, len(run), size)]

    def _add_broken(self, broken: dict[int, str]) -> None:
        if broken and not self.broken:
            row, reason = next(iter(broken.items()))
            if self.options.strict:
                raise broken_image_error(BadImage(name=self.encoded.name(row), reason=reason))
            name = self.encoded.name(row)
            self.log_event(f"Cannot decode {name}: {reason}. Images that cannot be decoded are replaced by others.")
        if broken:
            self.broken.update(broken)
            check_broken_share(self.encoded, self.options.class_names, self.broken)


def _replacement(good: list[int], row: int) -> int:
    """Return the good row of a batch that replaces a broken one; without any the broken one, which is black."""
    return good[row % len(good)] if good else row


class DecodedPieces(Datasource):
    """Decoded images as a source of Ray Data: each task decodes one piece."""

    def __init__(self, encoded: "ray.ObjectRef[EncodedImages]", crop: CropSpec, pieces: Sequence[np.ndarray]) -> None:
        self.encoded, self.crop, self.pieces = encoded, crop, pieces

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all decoded images."""
        return sum(len(piece) for piece in self.pieces) * int(np.prod(self.crop.shape))

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002
        """Return a task for each piece, however many Ray Data asks for."""
        return [self._task(piece) for piece in self.pieces]

    def _task(self, piece: np.ndarray) -> ReadTask:
        size = len(piece) * int(np.prod(self.crop.shape))
        metadata = BlockMetadata(num_rows=len(piece), size_bytes=size, input_files=None, exec_stats=None)
        return ReadTask(functools.partial(decode_piece, self.encoded, self.crop, piece), metadata)


def decode_piece(encoded: "ray.ObjectRef[EncodedImages]", crop: CropSpec, rows: np.ndarray) -> Iterator[pa.Table]:
    """Read and decode some images; yield rows, pixels, aspects, and the reason where one cannot be decoded."""
    pixels, aspects = np.zeros((len(rows), *crop.shape), np.uint8), np.ones(len(rows), np.float32)
    reasons: list[str | None] = [None] * len(rows)
    for index, image in enumerate(_fetch(encoded).read(rows.tolist())):
        try:
            pixels[index], aspects[index] = decode_with_aspect(image, crop)
        except DecodeError as error:
            reasons[index] = str(error)
    columns = {
        "row": rows,
        "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        "aspect": aspects,
        "reason": pa.array(reasons, pa.string()),
    }
    yield pa.table(columns)


@functools.lru_cache(maxsize=2)
def _fetch(reference: "ray.ObjectRef[EncodedImages]") -> EncodedImages:
    """Return the object of a reference, unpickled once per process: a million names take half a second."""
    encoded: EncodedImages = ray.get(reference)
    return encoded


def prefetch(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield `items`, computed by another thread up to `count` of them in advance."""
    pool = ThreadPoolExecutor(1, "prefetch")
    pending: deque[Future[Any]] = deque(pool.submit(next, items, None) for _ in range(count + 1))
    try:
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item
    finally:
        for future in pending:
            future.cancel()
        # A generator may be closed only in the thread that runs it.
        closed = pool.submit(items.close)  # type: ignore[attr-defined]
        pool.shutdown(wait=False)
        wait([closed], CLOSE_S)  # the caller may shut down Ray, which ends a process that still uses it
