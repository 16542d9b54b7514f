"""Whether a file that takes raw pixels resizes and cuts them as Pillow does, level by level."""

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from resnet_ops.data.decode import decode
from resnet_ops.export import graph, runtime
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.shown import ValidationImages

REAL, LEVELS, MEAN_LEVELS = 16, 2, 0.05  # it rounds twice, once for each direction
SIZES = ((1.0, 1.0), (1.0, 1.3), (0.6, 0.5), (2.13, 3.07), (4.5, 1.7), (7.9, 8.1))  # as multiples of what is covered


def compare_resizing(
    file: Path, provider: str, metadata: ModelMetadata, shown: ValidationImages | None
) -> tuple[str, bool]:
    """Compare pixels, after resizing and cutting, of random and real images of many sizes.

    Returns:
        The largest and the mean difference in levels of 255 in words, and whether they are within rounding.
    """
    model = onnx.load(str(file), load_external_data=True)
    steps = metadata.preprocessing
    shape: list[str | int | None] = ["batch", steps.channels, steps.height, steps.width]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(graph.PIXELS, TensorProto.UINT8, shape))
    session = runtime.load(model.SerializeToString(), provider)
    worst, means, images = 0, [], _images(metadata, shown)
    for image in images:
        (found,) = session.run(image[None])
        apart = np.abs(found.transpose(1, 2, 0).astype(int) - _as_pillow(image, metadata).astype(int))
        worst = max(worst, int(apart.max()))
        means.append(float(apart.mean()))
    mean = float(np.mean(means))
    sizes = len({image.shape for image in images})
    return (
        f"at most {worst} level{'' if worst == 1 else 's'}, mean {mean:.4f}, {sizes} sizes",
        worst <= LEVELS and mean <= MEAN_LEVELS,
    )


def _images(metadata: ModelMetadata, shown: ValidationImages | None) -> list[np.ndarray]:
    """Noise, in which nothing about a resize can hide, and real images."""
    steps, rng = metadata.preprocessing, np.random.default_rng(0)
    sides = [[max(1, round(a * b)) for a, b in zip(size, steps.resize, strict=True)] for size in SIZES]
    height, width = steps.resize
    sides += [[height, width + 3], [height + 1, width]]  # half a pixel to spare: to even it is rounded
    made = [rng.integers(0, 256, (*side, steps.channels), np.uint8) for side in sides]
    return made + (shown.of_own_size(REAL, steps.channels) if shown is not None else [])


def _as_pillow(image: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    stored = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(stored, "PNG")
    return decode(stored.getvalue(), metadata.preprocessing.frame)
