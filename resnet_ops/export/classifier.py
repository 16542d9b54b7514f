"""Use of an exported file by its metadata alone: `Classifier` maps pixels to probabilities, `predict` image files.

Loading on a provider is in `runtime`, checks of untrusted files in `untrusted`.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field

from resnet_ops.data import listing
from resnet_ops.data.dataset import image_count
from resnet_ops.data.decode import CropSpec, DecodeError, decode, decode_image
from resnet_ops.data.image_kinds import image_extensions, is_image
from resnet_ops.data.parallel_decode import CHUNK, map_chunks
from resnet_ops.errors import UserError, did_you_mean_path
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.config import PredictConfig, Provider
from resnet_ops.export.exported_files import check_is_of_best, with_exported_file
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.other_runtimes import Session
from resnet_ops.files import Place
from resnet_ops.results import Result

MAX_DECODED_BYTES = 128 * 2**20  # of decoded images that wait for the network


class Classifier:
    """An exported file: checked, run once in a sandbox process, and loaded.

    Args:
        file: The ONNX file.
        provider: The execution provider; auto is CUDA if there is a GPU, for int8 the CPU.

    Raises:
        UserError: The file is damaged or not of `resnet-ops export`, or the provider cannot be used here.
    """

    metadata: ModelMetadata
    session: Session

    def __init__(self, file: Path | str, provider: Provider = "auto") -> None:
        path = Path(file).expanduser()
        checked = untrusted.check_file(path, provider)
        session = runtime.create_session(path, runtime.resolve_provider(provider, checked.precision))
        # Of what is loaded: an export may have replaced the file since it was checked.
        self.metadata, self.session = ModelMetadata.parse(path.name, session.metadata), session

    @classmethod
    def from_session(cls, metadata: ModelMetadata, session: Session) -> Self:
        """Return a classifier for a session that is loaded already, without checks."""
        classifier = cls.__new__(cls)
        classifier.metadata, classifier.session = metadata, session
        return classifier

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the probabilities."""
        return self.metadata.class_names

    @property
    def crop(self) -> CropSpec:
        """Return how to decode images for it; if it takes raw pixels, up to the size that it would resize them to."""
        crop = self.metadata.preprocessing.crop
        return replace(crop, height=crop.cover[0], width=crop.cover[1]) if self.metadata.input == "raw" else crop

    def read(self, *images: Path | str) -> np.ndarray:
        """Read image files, resized and cropped to `crop`: pixels (N, H, W, C) uint8.

        Raises:
            DecodeError: A file is no image.
        """
        return np.stack([decode(Path(image).read_bytes(), self.crop) for image in images])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return the outputs of the file, logits or probabilities (N, classes) float32.

        Args:
            pixels: (N, H, W, C) uint8, of the size of `crop`, or of any size if the file takes raw pixels.
        """
        if self.metadata.input == "raw":
            return self.session.run(pixels)
        return self.session.run(normalize_pixels(pixels, self.metadata.preprocessing))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, (N, classes) float32.

        Args:
            images: Pixels (N, H, W, C) uint8, as for `run`.
        """
        outputs = self.run(images)
        return outputs if self.metadata.output == "probabilities" else softmax(outputs)

    def top(self, probabilities: np.ndarray, count: int) -> list[tuple[str, float]]:
        """Return the `count` most likely classes of one image (classes,) and their probabilities, the highest first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.metadata.class_names[index], float(probabilities[index])) for index in order]


def normalize_pixels(pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Normalize pixels (N, H, W, C) uint8 as the metadata says: (N, C, H, W) float32."""
    x: np.ndarray = pixels.astype(np.float32) * np.float32(steps.scale)
    x = (x - np.asarray(steps.mean, np.float32)) / np.asarray(steps.std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, classes)."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


class ClassProbability(Result):
    """A class and its probability."""

    name: str = Field(serialization_alias="class", description="Name of the class; in JSON `class`.")
    probability: float = Field(description="From 0 to 1.")


class Prediction(Result):
    """The most likely classes of an image, or the reason why it cannot be decoded."""

    path: Place = Field(description="The image.")
    top: tuple[ClassProbability, ...] = Field(default=(), description="The likeliest classes, the likeliest first.")
    error: str = Field(default="", exclude_if=lambda error: not error, description="Why it cannot be decoded, if so.")


class PredictResult(Result):
    """The predictions for all images."""

    predictions: tuple[Prediction, ...] = Field(description="One for each image, in order.")
    images: int = Field(description="Number of images.")
    failed: int = Field(description="Images that cannot be decoded.")
    file: Place = Field(description="The ONNX file.")
    model: str = Field(description="Network, such as resnet20.")
    provider: str = Field(description="ONNX Runtime's execution provider.")
    images_per_second: float = Field(description="Decoding included.")
    total_s: float = Field(description="Seconds from the request to this result.")


def predict(
    config: PredictConfig,
    on_progress: Callable[[int, int], object] = lambda *_: None,
    started_at: float | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> PredictResult:
    """Classify image files; those that cannot be decoded have an error in the result.

    Args:
        config: The ONNX file and the images.
        on_progress: Called now and then with the number of images that are done, and of all.
        started_at: When the user asked, in seconds since 1970; by default now.
        warn: Called where the file is of weights that are no longer the best of its run, and where images have 16 bits
            and those of training had not.

    Raises:
        UserError: There are no images, or the file cannot be used.
    """
    started_at = started_at or time.time()
    config = with_exported_file(config)
    paths = find_images(config.images)
    classifier = Classifier(config.file, config.provider)
    check_is_of_best(config.file.expanduser(), classifier.metadata.checkpoint_sha256, warn)
    began = time.monotonic()
    predictions: list[Prediction] = []
    for prediction in classify_files(classifier, paths, config.top, warn):
        predictions.append(prediction)
        if len(predictions) % 50 == 0:
            on_progress(len(predictions), len(paths))
    return PredictResult(
        predictions=tuple(predictions),
        images=len(predictions),
        failed=sum(bool(prediction.error) for prediction in predictions),
        file=config.file.absolute(),
        model=classifier.metadata.model,
        provider=classifier.session.provider,
        images_per_second=len(predictions) / (time.monotonic() - began),
        total_s=time.time() - started_at,
    )


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the given files and, recursively, the image files in the given folders, each once.

    They are in the order in which they were given, within a folder in natural order: 9.png before 10.png.

    Raises:
        UserError: A path does not exist, or there is no image.
    """
    images: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            names = [file.name for file in listing.list_files(path) if is_image(file.name)]
            images |= dict.fromkeys(path / name for name in sorted(names, key=natural_order))
        elif path.exists():
            images[path] = None
        else:
            raise UserError(f"{path} does not exist.", f"{did_you_mean_path(path)} Give images, or folders of images.")
    if not images:
        searched = ", ".join(map(str, paths))
        extensions = ", ".join(sorted(image_extensions()))
        raise UserError(f"No images found in {searched}.", f"Recognized file extensions: {extensions}.")
    return list(images)


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names as people do: 9.png before 10.png."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def classify_files(
    classifier: Classifier, paths: Sequence[Path], top: int, warn: Callable[[str], None] = lambda _: None
) -> Iterator[Prediction]:
    """Yield the prediction for each image, in order; `top` is limited to the number of classes.

    All cores decode while the network computes. No more than `MAX_DECODED_BYTES` are in memory, for any number of
    images. At the end `warn` is called where images have 16 bits and nothing says how many of them are used.
    """
    at_once = max(CHUNK, MAX_DECODED_BYTES // int(np.prod(classifier.crop.shape)) // CHUNK * CHUNK)
    wide = 0
    for start in range(0, len(paths), at_once):
        some = paths[start : start + at_once]
        for rows, pixels, errors, wide_rows in map_chunks(len(some), partial(_decode_files, classifier.crop, some)):
            wide += wide_rows
            probabilities = iter(classifier.classify(np.stack(pixels)) if pixels else ())
            for path, error in zip(some[rows.start : rows.stop], errors, strict=True):
                ranked = () if error else classifier.top(next(probabilities), top)
                classes = tuple(ClassProbability(name=name, probability=probability) for name, probability in ranked)
                yield Prediction(path=path, top=classes, error=error)
    if wide and classifier.metadata.preprocessing.bit_depth is None:
        warn(
            f"{image_count(wide)} of 16 bits, unlike those of training: 0 to 65,535 become 0 to 255, so an image that "
            "uses fewer bits is dark. Convert them to 8 bits."
        )


def _decode_files(crop: CropSpec, paths: Sequence[Path], rows: range) -> tuple[range, list[np.ndarray], list[str], int]:
    """Return the pixels of those rows that can be decoded, for each row the error or '', and how many have 16 bits."""
    pixels, errors, wide = [], [], 0
    for path in paths[rows.start : rows.stop]:  # one by one: encoded photos are large
        (encoded,) = listing.read_files(path.parent, [path.name])
        try:
            decoded = decode_image(encoded, crop)
            pixels.append(decoded.pixels)
            wide += decoded.header.wide
            errors.append("")
        except DecodeError as error:
            errors.append(str(error))
    return rows, pixels, errors, wide
