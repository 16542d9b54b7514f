"""A path or a name in, images and labels out. What lives here knows files, not torch.

`open_source` looks only at labels and one image, so that a wrong request fails at once;
`Source.load` decodes. Parquet files follow Hugging Face's layout: an image column of
{bytes, path}, a label column of integers, class names in the schema's metadata.
"""

import hashlib
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.runs import DataRecord

Split = Literal["train", "val"]

EMBEDDED = {"digits": Path(__file__).with_name("digits.parquet")}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
VAL_PREFIXES = ("validation", "valid", "val", "test")
VAL_FRACTION = 0.2  # of each class, where the data has no validation files of its own


@dataclass(frozen=True)
class Images:
    """Decoded images of one split: pixels (N, H, W, C) uint8 and labels (N,) int64."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set that was found and looks sound; nothing but one image is decoded yet."""

    record: DataRecord
    files: dict[Split, tuple[Path, ...]]
    columns: tuple[str, str]

    @property
    def embedded(self) -> bool:
        """Whether the images ship with this package."""
        return self.record.name in EMBEDDED and self.files["train"] == (EMBEDDED[self.record.name],)

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image still shows its class; a mirrored digit does not."""
        return not self.embedded

    def load(self, split: Split) -> Images:
        """Decode one split, in the files' order.

        Raises:
            UserError: An image cannot be decoded or differs in size from the first.
        """
        files = self.files[split] or self.files["train"]
        encoded, labels = _read_rows(files, self.columns)
        if not self.files["val"]:
            chosen = held_out(encoded, labels) == (split == "val")
            encoded, labels = [row for row, use in zip(encoded, chosen, strict=True) if use], labels[chosen]
        shape = (self.record.height, self.record.width, self.record.channels)
        pixels = np.empty((len(encoded), *shape), np.uint8)

        def decode_into(index: int) -> None:
            pixels[index] = _decode(encoded[index], shape, f"image {index} of the {split} images in {files[0].parent}")

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(decode_into, range(len(encoded)), chunksize=256):
                pass
        return Images(pixels, labels)


def open_source(data: str) -> Source:
    """Find a data set and check it without decoding it.

    Args:
        data: `digits`, a Parquet file, a folder of Parquet files or a glob of them. Files whose
            names start with validation, val or test are the validation images; without any,
            a fifth of each class is held out by a hash of the images' bytes.

    Raises:
        UserError: Nothing is there, it is not readable, it is empty, it has one class only, a
            label is out of range, or the first image cannot be decoded.
    """
    files = _split_files(_find_files(data))
    columns, names = _read_schema(files["train"][0])
    labels = {split: _read_labels(files[split], columns[1]) for split in files}
    every = np.concatenate(list(labels.values()))
    if not len(every) or not len(labels["train"]):
        raise UserError(f"--data {data} holds no training images.", "Give a data set that has some.")
    names = names or tuple(str(label) for label in range(int(every.max()) + 1))
    if every.min() < 0 or every.max() >= len(names):
        raise UserError(
            f"--data {data} has labels from {every.min()} to {every.max()}, but {len(names)} classes.",
            "Labels must be 0 for the first class, 1 for the second, and so on.",
        )
    if len(np.unique(labels["train"])) < 2:
        raise UserError(
            f"--data {data} has training images of one class only ({names[labels['train'][0]]}).",
            "There is nothing to tell apart: add images of another class.",
        )
    val_images = len(labels["val"]) or int(_held_out_per_class(labels["train"]).sum())
    if not val_images:
        raise UserError(f"--data {data} is too small to hold out validation images.", "Give at least 3 of a class.")
    height, width, channels = _first_shape(files["train"][0], columns[0])
    record = DataRecord(
        name=_name(data, files["train"][0]),
        fingerprint=_fingerprint(files),
        class_names=names,
        train_images=len(labels["train"]) - (0 if files["val"] else val_images),
        val_images=val_images,
        channels=channels,
        height=height,
        width=width,
    )
    return Source(record, files, columns)


def absolute(data: str) -> str:
    """What a user typed, as it can be found from any directory; as it is where there is no such path."""
    path = Path(data).expanduser()
    is_path = data not in EMBEDDED and (has_magic(data) or path.exists())
    return str(path.absolute()) if is_path else data


def fingerprint_of(data: str) -> str:
    """The fingerprint of a data set, as it is seen from here."""
    return open_source(data).record.fingerprint


def held_out(encoded: list[bytes], labels: np.ndarray) -> np.ndarray:
    """Choose the validation images (N,) bool: a fifth of each class, those of the smallest hashes.

    The choice depends on the images alone, not on their order, so it stays when files are
    renamed or shuffled, and mostly stays when images are added.
    """
    chosen = np.zeros(len(labels), bool)
    hashes = np.array([hashlib.sha256(image).digest() for image in encoded], dtype="S32")
    for label, count in enumerate(_held_out_per_class(labels)):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(hashes[members], kind="stable")[:count]]] = True
    return chosen


def _held_out_per_class(labels: np.ndarray) -> np.ndarray:
    return np.round(np.bincount(labels) * VAL_FRACTION).astype(int)


def _find_files(data: str) -> list[Path]:
    if data in EMBEDDED:
        return [EMBEDDED[data]]
    path = Path(data).expanduser()
    try:
        if has_magic(data):
            files = [Path(name) for name in glob(str(path), recursive=True)]  # noqa: PTH207  # absolute ones too
        elif path.is_dir():
            files = list(path.glob("*.parquet")) or list(path.glob("data/*.parquet"))
        else:
            files = [path] if path.exists() else []
    except OSError as error:
        raise UserError(f"--data {data} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if not files and path.is_dir():
        raise UserError(f"--data {data} is a folder without Parquet files.", "Give the folder that holds them.")
    if not files:
        raise UserError(
            f"--data {data}: there is no such path, and no data set of that name.",
            f"{did_you_mean(data, EMBEDDED)} Embedded: {', '.join(EMBEDDED)}.",
        )
    return sorted(files)


def _name(data: str, first: Path) -> str:
    """A short name that can be part of a run's name."""
    if data in EMBEDDED:
        return data
    path = Path(data).expanduser().resolve()
    stem = first.resolve().parent.name if has_magic(data) else path.name.removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "images"


def _split_files(files: list[Path]) -> dict[Split, tuple[Path, ...]]:
    """Tell validation from training files; the first kind of VAL_PREFIXES that is there counts."""
    by_prefix = {prefix: [f for f in files if f.name.startswith(prefix)] for prefix in VAL_PREFIXES if len(files) > 1}
    val = next((found for found in by_prefix.values() if found), [])
    named = {f for found in by_prefix.values() for f in found}
    train = [f for f in files if f not in named]
    if not train:
        raise UserError(
            f"{files[0].parent} has only validation files ({files[0].name}...).",
            "Name the training files train-*.parquet.",
        )
    return {"train": tuple(train), "val": tuple(val)}


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{file} cannot be read as Parquet: {reason}.", "Is it whole, and a Parquet file?") from None


def _read_schema(file: Path) -> tuple[tuple[str, str], tuple[str, ...]]:
    schema = _open_parquet(file).schema_arrow
    found = [next((c for c in wanted if c in schema.names), None) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS)]
    image, label = found
    if image is None or label is None:
        raise UserError(
            f"{file} has the columns {', '.join(schema.names)}; an image and a label column are needed.",
            f"Call them {IMAGE_COLUMNS[0]!r} ({{bytes, path}}) and {LABEL_COLUMNS[0]!r} (integers).",
        )
    if not pa.types.is_integer(schema.field(label).type) or not pa.types.is_struct(schema.field(image).type):
        raise UserError(
            f"{file}: column {image!r} is {schema.field(image).type}, column {label!r} {schema.field(label).type}.",
            "They must be a struct {bytes, path} and integers.",
        )
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return (image, label), tuple(features.get(label, {}).get("names", ()))


def _read_column(file: Path, column: str) -> pa.ChunkedArray:
    parquet = _open_parquet(file)
    try:
        return parquet.read(columns=[column]).column(column)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{file}: column {column!r} cannot be read: {error}.", "Is the file whole?") from None


def _read_labels(files: tuple[Path, ...], column: str) -> np.ndarray:
    labels = [_read_column(file, column) for file in files]
    if any(chunk.null_count for chunk in labels):
        raise UserError(f"{files[0].parent}: some images have no label.", "Give each image a label, or leave it out.")
    return np.concatenate([chunk.to_numpy() for chunk in labels] or [np.empty(0)]).astype(np.int64)


def _read_rows(files: tuple[Path, ...], columns: tuple[str, str]) -> tuple[list[bytes], np.ndarray]:
    encoded = [row.as_py() for file in files for row in _image_bytes(file, columns[0])]
    return encoded, _read_labels(files, columns[1])


def _image_bytes(file: Path, column: str) -> Any:
    images = _read_column(file, column).combine_chunks()
    try:
        return images.field("bytes")
    except KeyError:
        raise UserError(f"{file}: column {column!r} has no field 'bytes'.", "Embed the images' bytes.") from None


def _first_shape(file: Path, column: str) -> tuple[int, int, int]:
    batch = next(_open_parquet(file).iter_batches(1, columns=[column]))
    first = batch.column(0)[0].as_py() or {}
    image = _open_image(first.get("bytes"), f"the first image of {file}")
    channels = 1 if image.mode in ("1", "L") else 3
    return image.height, image.width, channels


def _open_image(encoded: bytes | None, what: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded or b""))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        reason = "it is empty" if not encoded else str(error)
        raise UserError(f"Cannot decode {what}: {reason}.", "Repair it or leave it out.") from None


def _decode(encoded: bytes, shape: tuple[int, int, int], what: str) -> np.ndarray:
    """Pixels (H, W, C) uint8 of one image."""
    image = _open_image(encoded, what)
    try:
        pixels = np.asarray(image.convert("L" if shape[2] == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"Cannot decode {what}: {error}.", "Repair it or leave it out.") from None
    if pixels.shape[:2] != shape[:2]:
        raise UserError(
            f"The images differ in size: {what} has {pixels.shape[1]}x{pixels.shape[0]} pixels, the first one "
            f"{shape[1]}x{shape[0]}.",
            "Bring them to one size first.",
        )
    return pixels.reshape(shape)


def _fingerprint(files: dict[Split, tuple[Path, ...]]) -> str:
    digest = hashlib.sha256()
    for split, paths in files.items():
        digest.update(split.encode())
        for path in paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
