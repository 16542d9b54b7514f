"""An exported file put to use: pixels in, probabilities out, by what the file says of itself and nothing else."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field

from resnet_ops.data import listing
from resnet_ops.data.decode import CropSpec, DecodeError, decode
from resnet_ops.data.discovery import EXTENSIONS, is_image
from resnet_ops.data.parallel_decode import CHUNK, map_chunks
from resnet_ops.errors import UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.config import PredictConfig, Provider
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.files import Place
from resnet_ops.results import Result


class Classifier:
    """An exported file, checked, tried in a process of its own, and loaded.

    Args:
        file: The ONNX file.
        provider: Where it runs; auto is CUDA where there is a GPU.

    Raises:
        UserError: The file is damaged or not of `resnet-ops export`, or the provider cannot be used here.
    """

    metadata: ModelMetadata
    session: runtime.OnnxSession

    def __init__(self, file: Path | str, provider: Provider = "auto") -> None:
        chosen, path = runtime.choose_provider(provider), Path(file).expanduser()
        self.metadata, self.session = untrusted.open_file(path), runtime.load(path, chosen)

    @classmethod
    def of(cls, metadata: ModelMetadata, session: runtime.OnnxSession) -> Self:
        """Make one of a session that is loaded already."""
        made = cls.__new__(cls)
        made.metadata, made.session = metadata, session
        return made

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.metadata.class_names

    @property
    def frame(self) -> CropSpec:
        """How images are to be decoded for it: of one that takes raw pixels, as far as it would resize them."""
        frame = self.metadata.preprocessing.frame
        return CropSpec(frame.cover, *frame.cover, frame.channels) if self.metadata.input == "raw" else frame

    def read(self, *images: Path | str) -> np.ndarray:
        """Read image files and fit them to `frame`: pixels (N, H, W, C) uint8.

        Raises:
            DecodeError: One is no image.
        """
        return np.stack([decode(Path(image).read_bytes(), self.frame) for image in images])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """What the file gives, logits or probabilities (N, classes) float32.

        Args:
            pixels: (N, H, W, C) uint8, of the size of `frame`; of any where the file takes raw pixels.
        """
        if self.metadata.input == "raw":
            return self.session.run(pixels)
        return self.session.run(normalised(pixels, self.metadata.preprocessing))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, (N, classes) float32.

        Args:
            images: Pixels (N, H, W, C) uint8, as for `run`.
        """
        found = self.run(images)
        return found if self.metadata.output == "probabilities" else softmax(found)

    def top(self, probabilities: np.ndarray, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of one image (classes,), and their probabilities, the likeliest first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.metadata.class_names[index], float(probabilities[index])) for index in order]


def normalised(pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Do to raw pixels (N, H, W, C) uint8 what metadata says: (N, C, H, W) float32."""
    x: np.ndarray = pixels.astype(np.float32) * np.float32(steps.scale)
    x = (x - np.asarray(steps.mean, np.float32)) / np.asarray(steps.std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (N, classes)."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


AHEAD_BYTES = 128 * 2**20  # of decoded images that wait for the network


class ClassProbability(Result):
    """A class, and how likely it is."""

    name: str = Field(serialization_alias="class", description="Name of the class; in JSON `class`.")
    probability: float = Field(description="From 0 to 1.")


class Prediction(Result):
    """What an image shows, or why that cannot be told."""

    path: Place = Field(description="The image.")
    top: tuple[ClassProbability, ...] = Field(default=(), description="The likeliest classes, the likeliest first.")
    error: str = Field(default="", exclude_if=lambda error: not error, description="Why it cannot be decoded, if so.")


class PredictResult(Result):
    """What images show."""

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
    seen: Callable[[int, int], object] = lambda *_: None,
    started_at: float | None = None,
) -> PredictResult:
    """Classify images with an exported file; one that cannot be decoded is told of, and the others go on.

    Args:
        config: Which file, and which images.
        seen: Told now and then how many of how many images are done.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There are no images, or the file cannot be used.
    """
    started_at = started_at or time.time()
    paths = find_images(config.images)
    classifier = Classifier(config.file, config.provider)
    began = time.monotonic()
    predictions: list[Prediction] = []
    for one in each_of(classifier, paths, config.top):
        predictions.append(one)
        if len(predictions) % 50 == 0:
            seen(len(predictions), len(paths))
    return PredictResult(
        predictions=tuple(predictions),
        images=len(predictions),
        failed=sum(bool(one.error) for one in predictions),
        file=config.file.absolute(),
        model=classifier.metadata.model,
        provider=classifier.session.provider,
        images_per_second=len(predictions) / (time.monotonic() - began),
        total_s=time.time() - started_at,
    )


def find_images(places: Sequence[Path]) -> list[Path]:
    """The files that are meant: those named, and in folders, at any depth, what is called like an image.

    In the order in which they were named, within a folder as people count: 9.png before 10.png. None comes twice.

    Raises:
        UserError: A place is not there, or there is no image in any.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            names = [file.name for file in listing.list_files(place) if is_image(file.name)]
            found |= dict.fromkeys(place / name for name in sorted(names, key=_as_people_count))
        elif place.exists():
            found[place] = None
        else:
            raise UserError(f"{place} does not exist.", "Give images, or folders that contain images.")
    if not found:
        where = ", ".join(map(str, places))
        raise UserError(f"No images found in {where}.", f"Recognised file extensions: {_listed(EXTENSIONS)}.")
    return list(found)


def each_of(classifier: Classifier, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """Classify images, in their order; `top` is cut to the number of classes.

    They are decoded by all cores while the network computes. No more are in memory than a chunk, whether there are ten
    or a million.
    """
    frame = classifier.frame
    ahead = max(CHUNK, AHEAD_BYTES // int(np.prod(frame.shape)) // CHUNK * CHUNK)
    for start in range(0, len(paths), ahead):
        some = paths[start : start + ahead]
        for rows, pixels, errors in map_chunks(len(some), partial(_decode, classifier, some)):
            answers = iter(classifier.classify(np.stack(pixels)) if pixels else ())
            for path, error in zip(some[rows.start : rows.stop], errors, strict=True):
                likely = () if error else classifier.top(next(answers), top)
                named = tuple(ClassProbability(name=name, probability=share) for name, share in likely)
                yield Prediction(path=path, top=named, error=error)


def _decode(classifier: Classifier, paths: Sequence[Path], rows: range) -> tuple[range, list[np.ndarray], list[str]]:
    """The images of these rows that can be decoded, and for each row why it cannot, or ''."""
    pixels, errors = [], []
    for path in paths[rows.start : rows.stop]:  # one by one: encoded, photos are large
        (encoded,) = listing.read_files(path.parent, [path.name])
        try:
            pixels.append(decode(encoded, classifier.frame))
            errors.append("")
        except DecodeError as error:
            errors.append(str(error))
    return rows, pixels, errors


def _as_people_count(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _listed(suffixes: set[str]) -> str:
    return ", ".join(sorted(suffixes))
