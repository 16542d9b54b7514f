"""Small images and datasets for tests: Parquet files and class folders."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def noise(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def encode_pixels(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    pixels: Iterable[np.ndarray | bytes],
    labels: Sequence[int | None],
    names: Sequence[str] = ("cat", "dog"),
    columns: tuple[str, str] = ("image", "label"),
    row_group_size: int | None = None,
) -> Path:
    """Write a Parquet file of images, which are encoded unless they are already."""
    encoded = [image if isinstance(image, bytes) else encode_pixels(image) for image in pixels]
    rows = [{"bytes": image, "path": None} for image in encoded]
    features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(rows, image_type), columns[1]: pa.array(labels, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def shades(
    brightness: Mapping[str, int], count: int, size: tuple[int, int], seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """Return `count` images (height, width, 3) of each class, noise around a brightness of its own."""
    random = np.random.default_rng(seed)
    return {
        name: list(np.clip(random.normal(mean, 20, (count, *size, 3)), 0, 255).astype(np.uint8))
        for name, mean in brightness.items()
    }


def write_class_folders(root: Path, classes: Mapping[str, Iterable[np.ndarray | bytes]], suffix: str = ".png") -> Path:
    """Write a folder for each class, its images 00.png, 01.png..."""
    for name, images in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            (root / name / f"{index:02}{suffix}").write_bytes(
                image if isinstance(image, bytes) else encode_pixels(image)
            )
    return root
