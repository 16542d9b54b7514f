"""Decoding of one image: resized as torchvision resizes it."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from resnet_ops.data.decode import CropSpec, decode
from tests.export.samples import png


@pytest.mark.parametrize(
    ("cover", "size"), [(224, (191, 382)), (224, (382, 191)), (256, (982, 1473)), (32, (392, 588)), (40, (33, 57))]
)
def test_an_image_is_resized_and_cropped_as_by_torchvision(cover: int, size: tuple[int, int]) -> None:
    """Also to sizes in whole pixels that floating point puts just below: 382 x 191 covers 224 as 448 x 224."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = v2.Compose([v2.Resize(cover), v2.CenterCrop(cover)])(Image.fromarray(image))
    assert np.array_equal(decode(png(image), CropSpec((cover, cover), cover, cover, 3)), np.asarray(theirs))
