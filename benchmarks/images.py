"""Images for benchmarks: a part of CIFAR-10, or made up, the same ones for every peer.

A folder gets `train-0.parquet` and `val-0.parquet`, which resnet-ops reads, and `train.npz` and
`val.npz`: the decoded arrays that torchvision's datasets have in memory, which peers read.
"""

import argparse
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = 10


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a script be told where CIFAR-10 is."""
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("RESNET_OPS_CIFAR10"), help="folder of CIFAR-10 in Parquet"
    )


def check(data: Path | None) -> Path:
    """The folder of CIFAR-10, or the end of the script in one line."""
    if data is None or not list(data.glob("train-*.parquet")):
        raise SystemExit("error: CIFAR-10 in Parquet is needed: name its folder with --data or RESNET_OPS_CIFAR10.")
    return data


def part_of_cifar10(data: Path, folder: Path, train: int, val: int) -> None:
    """Write the first `train` training and the first `val` test images, the latter for validation."""
    for split, part, count in (("train", "train", train), ("val", "test", val)):
        table = pa.concat_tables([pq.read_table(file) for file in sorted(data.glob(f"{part}-*.parquet"))])[:count]
        pq.write_table(table, folder / f"{split}-0.parquet")
        encoded = [row["bytes"] for row in table.column(0).to_pylist()]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in encoded])
        np.savez(folder / f"{split}.npz", pixels=pixels, labels=table.column(1).to_numpy())


def made_up(folder: Path, side: int, train: int, val: int) -> None:
    """Write images of noise, side x side."""
    random = np.random.default_rng(0)
    names = [str(label) for label in range(CLASSES)]
    for split, count in (("train", train), ("val", val)):
        pixels = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        labels = np.arange(count) % CLASSES
        write_parquet(folder / f"{split}-0.parquet", [_png(one) for one in pixels], labels, names)
        np.savez(folder / f"{split}.npz", pixels=pixels, labels=labels)


def write_parquet(
    file: Path, encoded: Sequence[bytes], labels: np.ndarray, names: Sequence[str], row_group: int | None = None
) -> None:
    """Write encoded images and their labels in Hugging Face's layout, `row_group` rows stored together."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": image, "path": None} for image in encoded]
    pq.write_table(pa.table({"image": rows, "label": labels}, schema=schema), file, row_group_size=row_group)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()
