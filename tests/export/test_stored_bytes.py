"""From the bytes of an image file, training, `predict`, `serve` and the graph see the same pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data.decode import decode
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.export import graph, runtime
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.training import job
from resnet_ops.training.checkpoint import read_best
from tests.data.samples import write_class_folders
from tests.data.test_decode import jpeg
from tests.export.samples import make_checkpoint, make_model, metadata_of
from tests.export.test_graph import probe


def stored_photos() -> dict[str, list[bytes]]:
    """Return JPEGs of two photos: portrait and landscape, upright and rotated, progressive, in CMYK and grey."""
    photos = {}
    for name in ("china", "flower"):
        image = Image.fromarray(load_sample_image(f"{name}.jpg"))
        photos[name] = [
            jpeg(image),
            jpeg(image.rotate(90, expand=True), quality=95, subsampling=0),
            jpeg(image.resize((150, 97)), progressive=True),
            jpeg(image, orientation=6),
            jpeg(image.resize((333, 301)), mode="CMYK"),
            jpeg(image, mode="L", orientation=3),
        ]
    return photos


def test_jpegs_have_the_same_pixels_in_training_and_in_exported_files(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_class_folders(tmp_path / "data" / split, stored_photos(), suffix=".jpg")
    source = open_source(DataConfig(data=str(tmp_path / "data"), image_size=32, cache_dir=tmp_path))
    assert source.record.stored == (36, 36)
    images = source.load("val")
    paths = [source.encoded("val").name(row) for row in range(len(images))]
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", stored=36)
    model = make_model(checkpoint, raw=True)
    session = runtime.create_session(probe(model, graph.PIXELS).SerializeToString(), runtime.CPU)
    files = {
        kind: Classifier.from_session(metadata_of(checkpoint, input=kind), session) for kind in ("normalized", "raw")
    }
    assert np.array_equal(files["normalized"].read(*paths), images.pixels)
    # What `predict` and `serve` hand to a raw file, which then crops it.
    assert np.array_equal(session.run(files["raw"].read(*paths)).transpose(0, 2, 3, 1), images.pixels)
    # What other programs hand to it: all pixels.
    for path, expected in zip(paths, images.pixels, strict=True):
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        (pixels,) = session.run(upright[None])
        difference = np.abs(pixels.transpose(1, 2, 0) - expected)
        assert difference.mean() <= 0.8, path
        assert difference.max() <= 20, path


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of 20x24 pixels in 16-bit PNGs with values of 12 bits, of which a third is dark."""
    root, rng = tmp_path_factory.mktemp("microscope"), np.random.default_rng(0)
    for name, white in (("cell", 4096), ("empty", 500)):
        images = rng.integers(0, white, (15, 20, 24)).astype(np.uint16)
        stored = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            stored.append(buffer.getvalue())
        write_class_folders(root, {name: stored})
    return root


@pytest.mark.parametrize("stream", ["off", "on"])
def test_twelve_bits_are_twelve_bits_from_training_to_predictions(
    twelve_bits: Path, stream: str, tmp_path: Path
) -> None:
    options = {"data": str(twelve_bits), "stream": stream, "cache_dir": tmp_path}
    result = job.train(
        TrainConfig.of(model="resnet8", epochs=1, batch_size=8, runs_dir=tmp_path, cpus_per_worker=1, **options)
    )
    assert result.record.data.bit_depth == 12
    checkpoint, _ = read_best(result.run)
    metadata = ModelMetadata.parse("m.onnx", metadata_of(checkpoint).properties())
    assert metadata.preprocessing == Preprocessing.of(checkpoint.info, "normalized")
    assert metadata.preprocessing.bit_depth == 12
    source = open_source(DataConfig(**options))
    values = of_all(source)
    for row, encoded in enumerate(source.encoded("val").read(range(len(values)))):
        assert np.abs(decode(encoded, metadata.preprocessing.crop)[..., 0] - values[row] / 4095 * 255).max() <= 0.5
    train = of_all(source, "train") / 4095
    assert checkpoint.info.mean == pytest.approx([train.mean()], abs=1e-3)
    assert checkpoint.info.std == pytest.approx([train.std()], abs=1e-3)


def of_all(source: Source, split: str = "val") -> np.ndarray:
    """Return the stored values of all images of a split."""
    encoded = source.encoded(split)  # type: ignore[arg-type]
    files = [encoded.name(row) for row in range(len(encoded.labels))]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(float)
