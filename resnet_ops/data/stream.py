"""Images that do not fit in memory: threads of the worker read and decode them while the network trains.

The order is that of sampling.py, so that a streamed run computes what one in memory does and resumes as exactly. What
is read together is in read_schedule.py, how batches reach a GPU in batch_ring.py.
"""

import functools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resnet_ops import files
from resnet_ops.data import sampling
from resnet_ops.data.batch_ring import Batch, BatchRing
from resnet_ops.data.daemon_pool import DaemonPool
from resnet_ops.data.dataset import EncodedImages, Split
from resnet_ops.data.decode import DecodeError, decode_image
from resnet_ops.data.parallel_decode import DecodeOptions, broken_image_error, check_broken_share
from resnet_ops.data.read_schedule import Piece, ReadSchedule
from resnet_ops.data.sources import Source
from resnet_ops.run_records import BadImage

PIECE_BYTES = 2 * 2**20  # of decoded images that a thread takes at a time: 13 at 224x224, 50 ms of work
PIECE_IMAGES = 256  # at most, where they are small
FULL_SHUFFLE_BYTES = 64 * 2**20  # of decoded images; up to this, batches of Parquet are drawn from all row groups
WINDOW_BYTES = 512 * 2**20  # of decoded images of the row groups that are mixed, beyond
AHEAD_BYTES = 256 * 2**20  # of batches that are decoded before they are needed
MIN_AHEAD = 3  # batches, where they are large: one on its way to the device, one to complete, one to go on with


@dataclass(frozen=True)
class StreamedImages:
    """One split that is read and decoded again in each epoch.

    Args:
        encoded: The images.
        options: How they are decoded, and whether a broken one is an error.
        device: The device of the batches.
        threads: How many threads decode.
        replace_broken: Whether a good image of the batch takes the place of a broken one, as in training, where batches
            have one size; otherwise it is left out.
        log_event: Called with a message at the first broken image.
        broken: For each row that could not be decoded so far, the reason.
        cut_rows: The rows so far that are JPEGs without their end.
    """

    encoded: EncodedImages
    options: DecodeOptions
    device: torch.device
    threads: int
    replace_broken: bool
    log_event: Callable[[str], None]
    broken: dict[int, str] = field(default_factory=dict)
    cut_rows: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls, source: Source, split: Split, device: torch.device, log_event: Callable[[str], None]
    ) -> "StreamedImages":
        """Stream a split of a source, with as many threads as torch has, or twice as many from a bucket."""
        threads = torch.get_num_threads() * (2 if files.is_remote(source.files[0].root) else 1)
        return cls(source.encoded(split), source.decode_options(split), device, threads, split == "train", log_event)

    def __len__(self) -> int:
        return len(self.encoded.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.options.crop.height, self.options.crop.width

    @property
    def labels(self) -> Tensor:
        """The class of each image, (N,) int64."""
        return torch.from_numpy(self.encoded.labels)

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Images that could not be decoded so far."""
        return tuple(BadImage(name=self.encoded.name(row), reason=reason) for row, reason in self.broken.items())

    @property
    def cut(self) -> tuple[BadImage, ...]:
        """JPEGs without their end so far, which are used."""
        return tuple(BadImage(name=self.encoded.name(row), reason="cut") for row in self.cut_rows)

    @functools.cached_property
    def _row_groups(self) -> np.ndarray | None:
        """The row group of each image; None where each is read alone."""
        return self.encoded.row_groups

    @property
    def _windowed(self) -> bool:
        """Return whether there are row groups, and too many images in them to be shuffled as a whole."""
        return self._row_groups is not None and len(self) * self._image_bytes > FULL_SHUFFLE_BYTES

    @property
    def _image_bytes(self) -> int:
        return math.prod(self.options.crop.shape)

    def shuffled_batches(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return one rank's rows of each batch, in an order that follows from the generator's state.

        It is that of images in memory, but for Parquet whose decoded images are more than `FULL_SHUFFLE_BYTES`: those
        are mixed within a window of row groups, of `WINDOW_BYTES` or of a quarter of them all, so that each group is
        read about once (`sampling.rank_batches_by_row_group`).
        """
        if self._windowed:
            assert self._row_groups is not None
            count = int(self._row_groups[-1]) + 1
            window = max(1, min(count // 4, WINDOW_BYTES * count // (len(self) * self._image_bytes)))
            return sampling.rank_batches_by_row_group(self._row_groups, window, batch_size, rank, world_size, generator)
        return sampling.rank_batches(torch.randperm(len(self), generator=generator), batch_size, rank, world_size)

    def sequential_batches(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        """Return one rank's share of all rows, ascending, in batches."""
        return sampling.sequential_batches(len(self), batch_size, rank, world_size, contiguous=self._windowed)

    def load_batches(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[Batch]:
        """Yield each batch of rows, on the device; call `beat` at the start and with each piece.

        Where broken images are left out, a batch may be smaller, and one without a good image is not yielded. A timer's
        beat would hide a file server that no longer answers.

        Raises:
            UserError: An image is broken and that is an error, or too many are.
            PausedError: The bucket is out of reach.
        """
        beat()
        rows_of = [batch.numpy() for batch in batches]
        batch_size = max(map(len, rows_of), default=0)
        piece_images = min(PIECE_IMAGES, max(1, PIECE_BYTES // self._image_bytes))
        schedule = ReadSchedule.of(rows_of, self._row_groups, piece_images)
        slots = schedule.span + max(MIN_AHEAD, AHEAD_BYTES // max(1, batch_size * self._image_bytes))
        ring = BatchRing(min(slots, len(batches)), batch_size, self.options.crop.shape, self.device)
        decoding: deque[Future[dict[tuple[int, int], str]]] = deque()
        begun = decoded = 0  # pieces
        broken: defaultdict[int, list[int]] = defaultdict(list)  # places in each batch
        with DaemonPool(self.threads) as pool:
            for batch, rows in enumerate(rows_of):
                while begun < len(schedule) and ring.can_fill(schedule.reach[begun]):
                    decoding.append(pool.submit(functools.partial(self._decode_piece, schedule.piece(begun), ring)))
                    begun += 1
                while decoded < schedule.needed[batch]:
                    reasons = decoding.popleft().result()
                    decoded += 1
                    beat()
                    self._add_broken({int(rows_of[b][place]): reason for (b, place), reason in reasons.items()})
                    for b, place in reasons:
                        broken[b].append(place)
                ring.slot(batch)[1][: len(rows)] = self.encoded.labels[rows]
                size = len(rows)
                if bad := broken.pop(batch, []):
                    if self.replace_broken:
                        _replace_broken(ring.slot(batch), rows, bad)
                    else:
                        size = _leave_out_broken(ring.slot(batch), size, bad)
                pixels, labels, aspects = ring.send(batch, size)
                if size:
                    yield Batch(pixels, labels, aspects if self.options.crop.whole else None)
                ring.release()

    def _decode_piece(self, piece: Piece, ring: BatchRing) -> dict[tuple[int, int], str]:
        """Read and decode images into the batches that they are of; return why some cannot, by batch and place."""
        reasons = {}
        rows = piece.rows.tolist()
        targets = zip(piece.batches.tolist(), piece.places.tolist(), rows, strict=True)
        for (batch, place, row), image in zip(targets, self.encoded.read(rows), strict=True):
            try:
                pixels, _, aspects = ring.slot(batch)
                decoded = decode_image(image, self.options.crop)
                pixels[place], aspects[place] = decoded.pixels, decoded.aspect
                if decoded.is_cut:
                    self.cut_rows.add(row)
            except DecodeError as error:
                reasons[batch, place] = str(error)
        return reasons

    def _add_broken(self, broken: Mapping[int, str]) -> None:
        if broken and not self.broken:
            row, reason = next(iter(broken.items()))
            if self.options.strict:
                raise broken_image_error(BadImage(name=self.encoded.name(row), reason=reason))
            name = self.encoded.name(row)
            become = "replaced by others" if self.replace_broken else "left out"
            self.log_event(f"Cannot decode {name}: {reason}. Images that cannot be decoded are {become}.")
        if broken:
            self.broken.update(broken)
            check_broken_share(self.encoded, self.options, self.broken)


def _leave_out_broken(images: Sequence[np.ndarray], size: int, broken: Sequence[int]) -> int:
    """Move the good images of a batch of `size` to its start, in their order, and return how many they are."""
    good = np.delete(np.arange(size), broken)
    for part in images:
        part[: len(good)] = part[good]
    return len(good)


def _replace_broken(images: Sequence[np.ndarray], rows: np.ndarray, broken: Sequence[int]) -> None:
    """Put good images of a batch in the places of broken ones; without any these are black."""
    pixels, _, aspects = images
    good = np.delete(np.arange(len(rows)), broken)
    for place in broken:
        if not len(good):
            pixels[place], aspects[place] = 0, 1
            continue
        for part in images:
            part[place] = part[good[rows[place] % len(good)]]
