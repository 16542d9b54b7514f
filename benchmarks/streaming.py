"""Images/s streamed from JPEGs to batches, from a folder and from Parquet, beside a bare pool of threads.

    python benchmarks/streaming.py [--runs 5] [--images 3000]

The pool reads the same files and decodes them with the same function, on as many threads, and drops the pixels: what
these cores can give. Writes benchmarks/results/streaming.md and .json.
"""

import argparse
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from images import write_parquet
from PIL import Image
from record import Floor, Row, in_turn, ratio, write

from resnet_ops.config import DataConfig
from resnet_ops.data.decode import decode
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.data.stream import StreamedImages
from resnet_ops.machine import cores

WIDTH, HEIGHT = 500, 375  # ImageNet's most frequent size
BATCH = 64
VAL_IMAGES = 8
ROW_GROUP = 100  # images, as Hugging Face writes them
POOL, FOLDER, PARQUET = "bare threads, files in a folder", "resnet-ops, the same folder", "resnet-ops, Parquet"
LEAST = 0.9
ABOUT = f"""
JPEGs of {WIDTH}x{HEIGHT}, resized to cover 256x256 and cropped to it, to shuffled batches of {BATCH}. The bare threads
read and decode with the same function and drop the pixels. Ratios: over them.
"""


def jpegs(count: int) -> Iterator[bytes]:
    """Yield made up photographs: blurred shapes with some detail, 50 to 100 KB each."""
    random = np.random.default_rng(0)
    for _ in range(count):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for side, strength in ((4, 60), (16, 40), (64, 25), (256, 14)):
            coarse = random.normal(0, strength, (side * 3 // 4, side, 3)).clip(-120, 120) + 128
            layer = Image.fromarray(coarse.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            pixels += np.asarray(layer, np.float32) - 128
        buffer = io.BytesIO()
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def make_images(root: Path, count: int) -> None:
    """Write the same images as a folder of files and as Parquet, some to validate beside them."""
    for split, images in (("train", list(jpegs(count))), ("val", list(jpegs(VAL_IMAGES)))):
        for index, image in enumerate(images):
            file = root / "folder" / split / "ab"[index % 2] / f"{index:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
        (root / "parquet").mkdir(exist_ok=True)
        labels = np.arange(len(images)) % 2
        write_parquet(root / "parquet" / f"{split}-0.parquet", images, labels, ["a", "b"], ROW_GROUP)


def open_images(data: Path) -> tuple[Source, StreamedImages]:
    """Return images to train on, streamed with one thread a core."""
    source = open_source(DataConfig(data=str(data), stream="on"))
    return source, StreamedImages.of(source, "train", torch.device("cpu"), print)


def bare_rate(source: Source, root: Path) -> float:
    """Return images/s of threads that read and decode each file."""
    files, crop = sorted(root.rglob("train/*/*.jpg")), source.crop_spec("train")
    started = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        count = sum(pool.map(lambda file: decode(file.read_bytes(), crop).shape[0] == crop.height, files))
    assert count == len(files)
    return count / (time.perf_counter() - started)


def stream_rate(images: StreamedImages) -> float:
    """Return images/s of an epoch of batches."""
    batches = images.shuffled_batches(BATCH, 0, 1, torch.Generator().manual_seed(0))
    started = time.perf_counter()
    count = sum(len(pixels) for pixels, _, _ in images.load_batches(batches, lambda: None))
    assert count == math.ceil(len(images) / BATCH) * BATCH
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root, options.images)
        source, from_folder = open_images(root / "folder")
        _, from_parquet = open_images(root / "parquet")
        measures: dict[str, Callable[[], float]] = {
            POOL: lambda: bare_rate(source, root / "folder"),
            FOLDER: lambda: stream_rate(from_folder),
            PARQUET: lambda: stream_rate(from_parquet),
        }
        found = in_turn(measures, options.runs)
    rows: list[Row] = [
        {
            "": name,
            "images/s": statistics.median(rates),
            "images/s per core": statistics.median(rates) / cores(),
            "ratio": None if name == POOL else ratio(rates, found[POOL]),
            "each": rates,
        }
        for name, rates in found.items()
    ]
    floors = [Floor(f"{name} over bare threads", LEAST, ratio(found[name], found[POOL])) for name in (FOLDER, PARQUET)]
    write("streaming", "Streaming", ABOUT, rows, floors, options.runs, "pillow")


if __name__ == "__main__":
    main()
