"""Make resnet_ops/data/digits.parquet from scikit-learn's copy of the UCI optical digits.

    python tests/data/make_digits.py resnet_ops/data/digits.parquet

Each pixel counts the set bits of a 4x4 block of the scan, 0 to 16; here it is scaled to 0...255,
which loses nothing, and stored as PNG in the Parquet layout of Hugging Face.
"""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


def pixels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 8, 8) uint8 and labels (1797,) int64."""
    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def table() -> pa.Table:
    """Make the table: image {bytes, path}, label, and class names in the schema's metadata."""
    pixels, labels = pixels_and_labels()
    rows = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", optimize=True)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    names = [str(digit) for digit in range(10)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table(
        {"image": pa.array(rows, image_type), "label": pa.array(labels, pa.int64())}
    ).replace_schema_metadata(metadata)


if __name__ == "__main__":
    pq.write_table(table(), sys.argv[1], compression="zstd", compression_level=19)
