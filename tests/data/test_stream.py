"""Streamed images: the same batches as from memory."""

import itertools
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data import sampling, sources, stream
from resnet_ops.data.audit import check_data
from resnet_ops.data.augment import Augmentation, pixel_statistics
from resnet_ops.data.batch_ring import BatchRing
from resnet_ops.data.dataset import EncodedImages
from resnet_ops.data.loader import DeviceImages, Loader, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.data.parquet import ParquetImages
from resnet_ops.data.read_schedule import ReadSchedule
from resnet_ops.data.stream import StreamedImages
from resnet_ops.errors import PausedError, UserError
from resnet_ops.training import job, preflight
from resnet_ops.training.worker import EXIT_CODE
from tests.data.samples import noise, write_parquet
from tests.integration.test_train import assert_same_bytes, weights

CPU = torch.device("cpu")
HANGS = """
import os, sys, threading, time
from pathlib import Path
import torch
from resnet_ops.config import DataConfig
from resnet_ops.data import daemon_pool, stream
from resnet_ops.data.opening import open_source
from resnet_ops.data.stream import StreamedImages
from resnet_ops.training.worker import Watchdog

stream.PIECE_IMAGES = 10
data, traces, file, how = sys.argv[1:]
source = open_source(DataConfig(data=data, stream="on", image_size=16))
images = StreamedImages.of(source, "val", torch.device("cpu"), print)
watchdog = Watchdog(1.0, Path(traces), lambda what: print(what, flush=True))

def read(beat):
    for _, labels, _ in images.load_batches(images.sequential_batches(10, 0, 1), beat):
        print(f"read {len(labels)}", flush=True)

read(lambda: None)
Path(file).unlink()
os.mkfifo(file)  # whoever opens it waits
if how == "watched":
    with watchdog.watching():
        read(watchdog.beat)
daemon_pool.CLOSE_S = 0.5
batches = images.load_batches(images.sequential_batches(10, 0, 1), lambda: None)
next(batches)
batches.close()
print("closed")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of differing sizes to train on, 30 to validate."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 120), ("val", 30)):
        for index in range(count):
            file = root / split / "ab"[index % 2] / f"{index:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (*random.integers(18, 40, 2), 3), np.uint8)).save(file)
    return root


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 images in 24 row groups of two files, and 20 to validate in one."""
    root = tmp_path_factory.mktemp("parquet")
    for index in range(2):
        write_parquet(root / f"train-{index}.parquet", noise(96, seed=index), [0, 1] * 48, row_group_size=8)
    write_parquet(root / "val-0.parquet", noise(20, seed=2), [0, 1] * 10)
    return root


def loader(data: Path, how: str, rank: int = 0, world_size: int = 1, **options: Any) -> Loader:
    source = open_source(DataConfig(data=str(data), stream=how, image_size=options.pop("image_size", None)))
    record = source.record
    size = (record.height, record.width) if record.stored else None
    choices: dict[str, Any] = {
        "batch_size": 16, "augmentation": Augmentation(crop_padding=1, flip=True, size=size), "seed": 3
    } | options  # fmt: skip
    object.__setattr__(source, "whole", choices["augmentation"].random_resized_crop)
    if how == "on":
        mean, std = pixel_statistics(source.sample_counts())
        object.__setattr__(source, "record", source.record.model_copy(update={"mean": mean, "std": std}))
    return open_loader(source, CPU, rank=rank, world_size=world_size, **choices)


def assert_same_batches(ours: Any, theirs: Any) -> None:
    for batch, expected in zip(ours, theirs, strict=True):
        for part, expected_part in zip(batch, expected, strict=True):
            assert part is expected_part is None or torch.equal(part, expected_part)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_batches_are_those_from_memory_from_any_step_on(
    kind: str, rank: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE_IMAGES", 10)  # batches are made of parts of several pieces
    monkeypatch.setattr(stream, "AHEAD_BYTES", 0)  # the memory of a batch is used again for later ones
    size = {"image_size": 16} if kind == "folder" else {}
    data = request.getfixturevalue(kind)
    streamed, in_memory = loader(data, "on", rank, 2, **size), loader(data, "off", rank, 2, **size)
    assert (streamed.mean, streamed.std) == (in_memory.mean, in_memory.std)
    assert_same_batches(streamed.train_batches(1, start=3), list(in_memory.train_batches(1))[3:])
    assert_same_batches(streamed.val_batches(), in_memory.val_batches())


def test_random_resized_crops_are_those_from_memory(folder: Path) -> None:
    options = {"image_size": 16, "augmentation": Augmentation(random_resized_crop=True, flip=True, size=(16, 16))}
    streamed, in_memory = loader(folder, "on", **options), loader(folder, "off", **options)
    assert isinstance(in_memory.train, DeviceImages)
    assert in_memory.train.aspects is not None
    assert in_memory.train.aspects.std() > 0.1
    assert_same_batches(streamed.train_batches(1), in_memory.train_batches(1))


def test_of_much_parquet_each_row_group_is_read_by_one_worker_and_resuming_is_as_exact(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FULL_SHUFFLE_BYTES", 0)
    monkeypatch.setattr(stream, "AHEAD_BYTES", 0)
    monkeypatch.setattr(stream, "WINDOW_BYTES", 4 * 8 * noise(1).nbytes)  # 4 of the 24 row groups
    whole = loader(parquet, "off")
    known = {image.numpy().tobytes(): row for row, image in enumerate(whole.train.take(torch.arange(192))[0])}  # type: ignore[attr-defined]
    plain = {"augmentation": Augmentation()}
    units = [set(), set()]
    seen: list[int] = []
    for rank in (0, 1):
        streamed = loader(parquet, "on", rank, 2, **plain)
        shares = streamed.train.shuffled_batches(16, rank, 2, torch.Generator().manual_seed(0))
        for share, (pixels, labels, _) in zip(shares, streamed.train.load_batches(shares, lambda: None), strict=True):
            rows = [known[image.numpy().tobytes()] for image in pixels]
            assert rows == share.tolist()
            assert labels.tolist() == [row % 2 for row in rows]
            units[rank] |= {row // 8 for row in rows}
            seen += rows
        assert_same_batches(streamed.train_batches(2, start=5), list(streamed.train_batches(2))[5:])
    assert sorted(seen) == list(range(192))
    assert not units[0] & units[1]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30), batch_size=st.integers(1, 40),
    world_size=st.integers(1, 5), window=st.integers(1, 10),
)  # fmt: skip
def test_workers_share_row_groups_without_overlap(
    sizes: list[int], batch_size: int, world_size: int, window: int
) -> None:
    units = np.repeat(np.arange(len(sizes)), sizes)
    shares = [
        sampling.rank_batches_by_row_group(
            units, window, batch_size, rank, world_size, torch.Generator().manual_seed(1)
        )
        for rank in range(world_size)
    ]
    steps = math.ceil(len(units) / batch_size)
    for rank, own in enumerate(shares):
        assert [len(share) for share in own] == [len(range(rank, batch_size, world_size))] * steps
    rows = np.array([row for own in shares for share in own for row in share.tolist()], int)
    times = np.bincount(rows, minlength=len(units))
    assert len(rows) == steps * batch_size
    assert times.min() >= 1  # every image is in every epoch
    assert times.max() - times.min() <= 1
    readers = [set(units[[row for share in own for row in share.tolist()]].tolist()) for own in shares]
    assert sum(map(len, readers)) - len(set.union(*readers)) <= world_size - 1  # units that two workers read
    for own in shares:  # what was read is used before long: at most a window of units is open at a time
        used = units[np.concatenate(own)] if steps else units[:0]
        first, last = {}, {}
        for place, unit in enumerate(used.tolist()):
            first.setdefault(unit, place)
            last[unit] = place
        for place in range(len(used)):
            assert sum(first[unit] <= place <= last[unit] for unit in first) <= window + 1


def small_run(folder: Path, tmp_path: Path, how: str, **options: Any) -> job.TrainResult:
    return job.train(
        TrainConfig.of(
            model="resnet8", data=str(folder), image_size=16, batch_size=16, epochs=1, runs_dir=tmp_path, name=how,
            stream=how, **options,
        )
    )  # fmt: skip


def test_a_streamed_run_ends_in_the_bytes_of_one_in_memory(folder: Path, tmp_path: Path) -> None:
    streamed, in_memory = (small_run(folder, tmp_path, how) for how in ("on", "off"))
    assert_same_bytes(weights(streamed.run, 1), weights(in_memory.run, 1))
    assert streamed.run.epochs()[0].val_loss == in_memory.run.epochs()[0].val_loss
    assert (streamed.record.config.stream, in_memory.record.config.stream) == ("on", "off")


@pytest.mark.slow
def test_workers_that_reserve_all_cores_stream(folder: Path, tmp_path: Path) -> None:
    result = small_run(folder, tmp_path, "on", workers_per_node=2)
    assert result.record.world_size == 2
    assert result.epochs == 1


def test_a_broken_image_is_replaced_and_named(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "data" / split / name).symlink_to(folder / split / name)
    bad = tmp_path / "data" / "train" / "c" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    for index in (1, 2):
        Image.fromarray(noise(1, side=20, seed=index)[0]).save(bad.with_name(f"{index}.png"))
    options: dict[str, Any] = {
        "model": "resnet8", "data": str(tmp_path / "data"), "image_size": 16, "batch_size": 41, "epochs": 1,
        "runs_dir": tmp_path / "runs", "stream": "on",
    }  # fmt: skip
    result = job.train(TrainConfig.of(**options, name="skips"))
    assert result.record.data.bad_images == 1
    assert result.record.data.first_bad_images[0].name == str(bad)
    (event,) = result.run.events()
    assert f"Cannot decode {bad}: it is not an image, but text." in event.what
    with pytest.raises(UserError, match=r"Cannot decode .*bad\.png: it is not an image"):
        job.train(TrainConfig.of(**options, name="fails", on_bad_image="fail"))


@pytest.fixture(scope="module")
def with_broken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `folder` and 20 more to validate; of these 50, two that cannot be decoded."""
    root = tmp_path_factory.mktemp("broken")
    for file in folder.rglob("*.png"):
        copy = root / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(file)
    for index, pixels in enumerate(noise(20, side=24, seed=5)):
        Image.fromarray(pixels).save(root / "val" / "ab"[index % 2] / f"more-{index:02}.png")
    (root / "val" / "a" / "004.png").unlink()
    (root / "val" / "a" / "004.png").write_bytes(b"no image")
    (root / "val" / "b" / "more-19.png").write_bytes(b"")
    return root


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_validation_image_that_can_be_decoded_is_counted_once(
    with_broken: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_ops.data.loader.EVAL_BATCH", 1 if workers == 3 else 8)  # 1: some batches are empty
    (in_memory,) = [loader(with_broken, "off", image_size=16)]
    expected = sorted(image.numpy().tobytes() for x, _ in in_memory.val_batches() for image in x)
    assert len(expected) == len(in_memory.val) == 48
    seen, bad = [], []
    for rank in range(workers):
        streamed = loader(with_broken, "on", rank, workers, image_size=16)
        for x, y in streamed.val_batches():
            assert len(x) == len(y) > 0
            seen += [image.numpy().tobytes() for image in x]
        bad += streamed.val.bad
    assert sorted(seen) == expected
    assert sorted(Path(image.name).name for image in bad) == ["004.png", "more-19.png"]


def test_a_streamed_run_validates_on_what_one_in_memory_does(with_broken: Path, tmp_path: Path) -> None:
    streamed, in_memory = (small_run(with_broken, tmp_path, how) for how in ("on", "off"))
    for name in ("val_loss", "val_error"):
        assert getattr(streamed.run.epochs()[0], name) == getattr(in_memory.run.epochs()[0], name)
    records = [result.record.data for result in (streamed, in_memory)]
    assert [(data.train_images, data.val_images, data.bad_images) for data in records] == [(120, 48, 2)] * 2
    assert records[0].first_bad_images == records[1].first_bad_images
    (event,) = streamed.run.events()
    assert "left out" in event.what


@pytest.fixture
def dead_server(folder: Path, tmp_path: Path) -> Callable[[str], tuple[subprocess.CompletedProcess[str], Path]]:
    """Read images in another process, of which one does not come any more, the last but one in their order."""
    data, traces = shutil.copytree(folder, tmp_path / "data"), tmp_path / "traces"
    silent = data / "val" / "b" / "027.png"

    def run(how: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        arguments = [sys.executable, "-c", HANGS, *map(str, (data, traces, silent, how))]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False), traces

    return run


def test_a_file_server_that_stops_answering_ends_the_worker(
    dead_server: Callable[[str], tuple[subprocess.CompletedProcess[str], Path]],
) -> None:
    ended, traces = dead_server("watched")
    assert ended.returncode == EXIT_CODE, ended.stderr
    read = ["read 10"] * 3
    assert ended.stdout.splitlines() == [*read, *read[:2], f"no step for 1 s; stack traces are in {traces}"]
    assert "in load_batches" in traces.read_text()
    assert "in read_files" in traces.read_text()


def test_a_file_server_that_stops_answering_does_not_keep_a_process_from_ending(
    dead_server: Callable[[str], tuple[subprocess.CompletedProcess[str], Path]],
) -> None:
    ended, _ = dead_server("closed")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "closed"


def test_each_piece_is_a_heartbeat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIECE_IMAGES", 10)
    beats: list[None] = []
    (batch,) = loader(folder, "on", image_size=16).val_batches(lambda: beats.append(None))
    assert len(batch[1]) == 30
    assert len(beats) == 1 + 3


@dataclass(frozen=True)
class Counted:
    """Other encoded images, and which rows were read; at a row of them the bucket is out of reach."""

    images: EncodedImages
    rows: list[int]
    lost: int | None = None

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels

    @property
    def row_groups(self) -> np.ndarray | None:
        return self.images.row_groups

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        if self.lost in rows:
            raise PausedError("s3://bucket cannot be reached.", "Check it.")
        self.rows.extend(rows)
        return self.images.read(rows)

    def name(self, row: int) -> str:
        return self.images.name(row)


def counted(folder: Path, lost: int | None = None) -> tuple[StreamedImages, list[int]]:
    train, rows = loader(folder, "on", image_size=16).train, []
    assert isinstance(train, StreamedImages)
    return replace(train, encoded=Counted(train.encoded, rows, lost)), rows


def test_no_more_is_read_than_there_is_memory_for_and_closing_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE_IMAGES", 5)
    monkeypatch.setattr(stream, "AHEAD_BYTES", 4 * 10 * noise(1, side=20).nbytes)
    images, rows = counted(folder)
    batches = images.load_batches(images.sequential_batches(10, 0, 1), lambda: None)
    next(batches)
    deadline = time.monotonic() + 10
    while len(rows) < 4 * 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert sorted(rows) == list(range(4 * 10))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    read = len(rows)
    time.sleep(0.2)
    assert len(rows) == read <= 5 * 10


def test_a_bucket_out_of_reach_stops_the_reading(folder: Path) -> None:
    images, _ = counted(folder, lost=35)
    batches = images.load_batches(images.sequential_batches(10, 0, 1), lambda: None)
    with pytest.raises(PausedError, match="s3://bucket cannot be reached"):
        list(batches)


def test_batches_stay_what_they_were_when_later_ones_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AHEAD_BYTES", 0)
    rows = [batch.clone() for batch in torch.arange(120).split(10)]
    loaders = [loader(folder, how, image_size=16) for how in ("on", "off")]
    streamed, in_memory = (list(each.train.load_batches(rows, lambda: None)) for each in loaders)
    assert_same_batches(streamed, in_memory)


def test_threads_read_each_row_group_once(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FULL_SHUFFLE_BYTES", 0)
    monkeypatch.setattr(stream, "PIECE_IMAGES", 3)  # of the 8 in a row group
    read_group, groups = ParquetImages._read_group, []
    monkeypatch.setattr(
        ParquetImages, "_read_group", lambda self, group: groups.append(group) or read_group(self, group)
    )
    train = loader(parquet, "on", augmentation=Augmentation()).train
    assert isinstance(train, StreamedImages)
    images = replace(train, threads=8)
    batches = images.shuffled_batches(16, 0, 1, torch.Generator().manual_seed(0))
    groups.clear()
    assert sum(len(labels) for _, labels, _ in images.load_batches(batches, lambda: None)) == 192
    assert 24 == len(set(groups)) <= len(groups) <= 24 + 4


@settings(max_examples=100, deadline=None)
@given(data=st.data(), batch_size=st.integers(1, 9), piece_images=st.integers(1, 7), groups=st.integers(0, 6))
def test_schedules_hold_each_image_once_and_need_no_more_slots_than_they_say(
    data: st.DataObject, batch_size: int, piece_images: int, groups: int
) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, 59), unique=True)), np.int64)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    batches += data.draw(st.sampled_from([[], [rows[:0]]]))  # a rank's share may be empty
    row_groups = np.sort(np.arange(60) * groups // 60) if groups else None
    schedule = ReadSchedule.of(batches, row_groups, piece_images)
    pieces = [schedule.piece(number) for number in range(len(schedule))]
    filled = [(b, place, row) for piece in pieces for row, b, place in zip(*vars(piece).values(), strict=True)]
    assert sorted(filled) == [(b, place, row) for b, batch in enumerate(batches) for place, row in enumerate(batch)]
    assert all(1 <= len(piece.rows) <= piece_images for piece in pieces)
    if row_groups is not None:
        order = [row_groups[piece.rows[0]] for piece in pieces]
        assert all(len(set(row_groups[piece.rows].tolist())) == 1 for piece in pieces)
        assert sum(a != b for a, b in itertools.pairwise(order)) == max(0, len(set(order)) - 1)
    for batch in range(len(batches)):
        done = pieces[: schedule.needed[batch]]
        assert sum((piece.batches == batch).sum() for piece in done) == len(batches[batch])
        assert max((piece.batches.max() for piece in done), default=0) <= batch + schedule.span


def test_the_slots_of_a_ring_are_free_when_their_batches_are_done() -> None:
    ring = BatchRing(2, 3, (1, 1, 1), CPU)
    for batch in range(5):
        assert ring.can_fill(batch)
        for part in ring.slot(batch):
            part[:] = batch
        assert [part.tolist() for part in ring.send(batch, 2)] == [[[[[batch]]]] * 2, [batch] * 2, [batch] * 2]
        assert not ring.can_fill(batch + 2)
        ring.release()


def test_what_does_not_fit_is_streamed_and_the_check_reports_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.of(model="resnet8", data=str(folder), image_size=16, batch_size=16)
    train_bytes = 120 * 20 * 20 * 3  # stored larger by 256/224, to be cropped
    for memory, how, state in ((2 * train_bytes, "off", "ok"), (2 * train_bytes - 1, "on", "note")):
        monkeypatch.setattr(sources, "memory_bytes", lambda memory=memory: memory)
        source, settled = preflight.check_training(config, "cpu")
        assert (source.decoded_bytes, settled.stream) == (train_bytes, how)
        report = check_data(config)
        assert report.decoded_bytes == train_bytes + 30 * 16 * 16 * 3
        assert report.streamed == (how == "on") == (report.cache is None)
        (memory_finding,) = (finding for finding in report.findings if finding.name == "memory")
        assert (memory_finding.state, "streaming" in memory_finding.summary) == (state, how == "on")
