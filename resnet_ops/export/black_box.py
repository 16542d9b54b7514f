"""Probes of what a file computes: images unlike any of a dataset, batches of many sizes, and images of many sizes.

A probe is compared with torch, or, of a file whose checkpoint is not at hand, with what the same file computes for the
same pixels in another way. The comparison on the validation set is in `proof`.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from resnet_ops.data.decode import CropSpec, DecodeError, covering_size, decode, decode_whole
from resnet_ops.export import runtime
from resnet_ops.export.classifier import Classifier, softmax
from resnet_ops.export.inputs import PROOF_BATCH, ValidationImages, random_pixels
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import Comparison, Tolerances, comparable

BATCH_SIZES = (2, 3, 4, 5, 6, 7, 8, 31, 64)
RANDOM_IMAGES = 16  # each depends on every weight
REAL_IMAGES = 16
ALTERED_IMAGES = 4  # of the real ones, altered in each way
RESIZED_SIZES = 5
STORED_IMAGES = 4
RELATIVE_SIZES = ((1.0, 1.0), (1.0, 1.3), (0.6, 0.5), (2.13, 3.07), (4.5, 1.7), (7.9, 8.1))  # to what is covered
# A JPEG that is decoded at a fraction of its size has other pixels than the whole one, resized.
SCALED_LEVELS, SCALED_TOLERANCE = 1.0, 5e-2
Probe = tuple[str, np.ndarray]


@dataclass(frozen=True)
class BlackBox:
    """A file that is probed, and what its outputs are compared with.

    Args:
        classifier: The file.
        reference: The network of its checkpoint; None if it is not at hand.
        tolerances: How far its outputs may differ.
        most: How many images fit into memory at once.
        alone: Outputs for images alone, by their pixels: each is computed once.
    """

    classifier: Classifier
    reference: Reference | None
    tolerances: Tolerances
    most: int = PROOF_BATCH
    alone: dict[bytes, np.ndarray] = field(default_factory=dict)

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """Compute what is compared of the file's outputs.

        Raises:
            ValueError: There is not one row for each image, or not one number for each class.
        """
        outputs = self.classifier.run(pixels)
        expected = len(pixels), len(self.classifier.class_names)
        if outputs.shape != expected:
            raise ValueError(f"outputs have the shape {outputs.shape}, expected {expected}")
        return comparable(outputs, self.classifier.metadata.output)

    def outputs_alone(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the outputs one image at a time."""
        for image in pixels:
            if (key := image.tobytes()) not in self.alone:
                self.alone[key] = self.outputs(image[None])[0]
        return np.stack([self.alone[image.tobytes()] for image in pixels])

    def expected(self, pixels: np.ndarray) -> np.ndarray | None:
        """Compute what torch's outputs are for images that need no resizing; None without a checkpoint."""
        if self.reference is None:
            return None
        logits, output = self.reference.logits(pixels), self.classifier.metadata.output
        return comparable(softmax(logits) if output == "probabilities" else logits, output)

    def check_images(self, probes: list[Probe], limit: float) -> tuple[str, bool]:
        """Compare the outputs for each image, one at a time, with torch's; without those they must be finite."""
        pixels = np.stack([image for _, image in probes])
        outputs = self.outputs_alone(pixels)
        for (name, _), row in zip(probes, outputs, strict=True):
            if not np.isfinite(row).all():
                return f"not finite on {name}", False
        expected = self.expected(pixels)
        if expected is None:
            return f"finite ({len(probes)} images)", True
        comparison = Comparison(expected, outputs)
        worst = probes[int(np.abs(expected - outputs).max(1).argmax())][0]
        return f"{comparison.max_rel:.1e} ({len(probes)} images, most on {worst})", comparison.max_rel <= limit

    def check_batches(self, pixels: np.ndarray, largest: int) -> tuple[str, bool]:
        """Compare each row of batches of many sizes, as far as they fit into memory, with the output for it alone."""
        alone = self.outputs_alone(pixels)
        sizes = sorted({*BATCH_SIZES, largest} - {1})
        fitting, first, worst = [size for size in sizes if size <= self.most], 0, {1: 0.0}
        for size in fitting:
            rows = (first + np.arange(size)) % len(pixels)
            first += size
            comparison = Comparison(alone[rows], self.outputs(pixels[rows]))
            worst[size] = comparison.max_rel if comparison.finite else np.inf
        wrong = [str(size) for size, difference in worst.items() if not difference <= self.tolerances.largest]
        if wrong:
            return f"{max(worst.values()):.1e} in batches of {', '.join(wrong)}", False
        tried = _listed_sizes(list(worst))
        larger = "; larger ones do not fit into the memory here" * (len(fitting) < len(sizes))
        return f"{max(worst.values()):.1e} in batches of {tried}{larger}", True

    def check_repeats(self, pixels: np.ndarray) -> tuple[str, bool]:
        """Compare the outputs of repeated runs; on ONNX Runtime's CPU they are the same to the bit."""
        some = pixels[:: -(-len(pixels) // min(REAL_IMAGES, self.most))]
        runs = [self.outputs(some) for _ in range(3)]
        worst = float(np.max([Comparison(runs[0], again).max_rel for again in runs[1:]]))  # NaN is kept, unlike by max
        limit = 0.0 if self.classifier.session.provider == runtime.CPU else self.tolerances.largest
        return f"{worst:.1e}" if worst else "equal", worst <= limit

    def check_resizing(self) -> tuple[str, bool]:
        """Compare outputs for noise of many sizes, in batches, with the file's own for what Pillow makes of it.

        Those are equal in any precision; whether they are right the other checks tell.
        """
        steps, crop, worst = self.classifier.metadata.preprocessing, self.classifier.crop, 0.0
        sizes = [image for image in noise(steps) if image.shape[:2] != steps.resize][:RESIZED_SIZES]
        for number, image in enumerate(sizes):
            batch = [image, image[::-1], image[:, ::-1]][: 2 + (number == 0)]
            resized = np.stack([resize_in_pillow(one, crop) for one in batch])
            worst = max(worst, self._difference(batch, self.outputs(resized)))
            if not np.isfinite(worst):
                return f"not finite, size {image.shape[:2]}", False
        return f"{worst:.1e} ({len(sizes)} sizes)", worst <= self.tolerances.largest

    def check_stored(self, images: ValidationImages) -> tuple[str, bool]:
        """Compare outputs for whole images with those for what training decodes from the same bytes.

        Where both have the same pixels, resized by Pillow, the outputs are held to the tolerance.
        """
        crop = self.classifier.crop
        exact, scaled, levels, count = 0.0, 0.0, 0.0, 0
        for encoded in images.stored(STORED_IMAGES):
            try:
                whole, decoded = decode_whole(encoded, crop.channels, crop.bit_depth), decode(encoded, crop)
            except DecodeError:
                continue
            count += 1
            in_pillow = resize_in_pillow(whole, crop)
            twin = whole[:, ::-1]
            pixels = np.stack([decoded, resize_in_pillow(twin, crop)])
            expected = self.expected(pixels)
            difference = self._difference([whole, twin], self.outputs(pixels) if expected is None else expected)
            apart = np.abs(in_pillow.astype(float) - decoded)
            levels = max(levels, float(apart.mean()))
            if apart.any():
                scaled = max(scaled, difference)
            else:
                exact = max(exact, difference)
        if not count:
            return "no image can be decoded", False
        words = f"{exact:.1e}" if not scaled else f"{exact:.1e}, decoded otherwise {scaled:.1e}, {levels:.2f} levels"
        passed = exact <= self.tolerances.largest and scaled <= max(SCALED_TOLERANCE, self.tolerances.largest)
        return f"{words} ({count} images)", passed and levels <= SCALED_LEVELS

    def _difference(self, batch: list[np.ndarray], expected: np.ndarray) -> float:
        """Return the largest relative difference of the outputs for a batch; infinite if one is not finite."""
        comparison = Comparison(expected, self.outputs(np.stack(batch)))
        return comparison.max_rel if comparison.finite else np.inf


def _listed_sizes(sizes: list[int]) -> str:
    """Return ascending sizes in words, the first ones as a range: '1 to 8, 31 and 64'."""
    small = next((n for n, size in enumerate(sizes) if size != n + 1), len(sizes))
    *parts, last = [f"1 to {small}" if small > 1 else "1", *map(str, sizes[small:])]
    return f"{', '.join(parts)} and {last}" if parts else last


def probe_images(crop: CropSpec, images: ValidationImages | None) -> dict[str, list[Probe]]:
    """Return named images for each check of single images: random pixels, extreme images and, if given, real ones."""
    random = [(f"random image {i}", image) for i, image in enumerate(random_pixels(RANDOM_IMAGES, crop))]
    real = [] if images is None else [(f"image {i}", x) for i, x in enumerate(images.sample(REAL_IMAGES, crop))]
    probes = {"random pixels": random, "extreme images": list(_extreme_images(crop, real))}
    return probes | ({"real images": real} if real else {})


def _extreme_images(crop: CropSpec, real: list[Probe]) -> Iterator[Probe]:
    """Yield images of one color, checkerboards, and real images that are inverted, bright, dark and without color."""
    colors = {"black": (0, 0, 0), "white": (255,) * 3, "grey": (128,) * 3}
    if crop.channels == 3:
        colors |= {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    for name, color in colors.items():
        yield name, np.full(crop.shape, color[: crop.channels], np.uint8)
    rows, columns = np.indices((crop.height, crop.width))
    for side in (1, 4):
        board = ((rows // side + columns // side) % 2 * 255).astype(np.uint8)
        yield f"a checkerboard of {side}", np.repeat(board[..., None], crop.channels, 2)
    for name, image in real[:: REAL_IMAGES // ALTERED_IMAGES]:
        yield f"{name} inverted", 255 - image
        yield f"{name} brightened", 255 - (255 - image) // 4
        yield f"{name} darkened", image // 4
        yield f"{name} without color", np.repeat(image.mean(2, keepdims=True).astype(np.uint8), crop.channels, 2)


def noise(steps: Preprocessing) -> list[np.ndarray]:
    """Return images of noise, in which no fault of a resize is hidden, of several sizes."""
    rng = np.random.default_rng(0)
    height, width = steps.resize
    sizes = [[max(1, round(a * b)) for a, b in zip(ratio, steps.resize, strict=True)] for ratio in RELATIVE_SIZES]
    sizes += [[height, width + 3], [height + 1, width]]  # half a pixel left over, which is rounded to even
    return [rng.integers(0, 256, (*size, steps.channels), np.uint8) for size in sizes]


def is_tall(image: np.ndarray) -> bool:
    """Return whether Pillow 13 resizes the rows of an image first."""
    return bool(image.shape[0] > 2 * image.shape[1])


def resize_in_pillow(image: np.ndarray, crop: CropSpec) -> np.ndarray:
    """Resize and crop an image as `decode` does, but of any image the columns first, as exported graphs do.

    Pillow 13 resizes the rows of tall images first, which moves a quarter of the pixels by a level.
    """
    if is_tall(image):
        rows, columns = covering_size((image.shape[0], image.shape[1]), crop.cover)
        for size in ((columns, image.shape[0]), (columns, rows)):
            image = np.asarray(_to_pillow(image).resize(size, Image.Resampling.BILINEAR)).reshape(*size[::-1], -1)
    return crop_pixels(image, crop)


def crop_pixels(image: np.ndarray, crop: CropSpec) -> np.ndarray:
    """Resize and crop an image as `decode` does."""
    stored = io.BytesIO()
    _to_pillow(image).save(stored, "PNG")
    return decode(stored.getvalue(), crop)


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
