"""The pictures of a run hold the numbers and the pixels that they are drawn from."""

import numpy as np
import torch
from PIL import Image

from resnet_ops.data.augment import normalize
from resnet_ops.data.contact_sheet import CELL, GAP
from resnet_ops.reporting.predictions import predict
from resnet_ops.training.job import TrainResult
from resnet_ops.training.run_pictures import draw_augmented, draw_confusion


def test_augmented_images_are_the_pixels_that_the_network_gets() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    sheet = np.asarray(draw_augmented(normalize(torch.from_numpy(pixels), mean, std), mean, std))
    assert sheet.shape == (2 * CELL + GAP, 4 * CELL + 3 * GAP, 3)
    factor = CELL // 16
    assert (sheet[:CELL:factor, CELL + GAP : 2 * CELL + GAP : factor] == pixels[1]).all()
    assert (sheet[CELL + GAP :: factor, :CELL:factor] == pixels[4]).all()


def test_cells_of_a_confusion_matrix_are_shaded_by_their_share_of_the_row() -> None:
    """Of 64 classes, which have neither numbers nor names."""
    counts = np.diag(np.full(64, 4))
    counts[5] = 0
    counts[5, [5, 7]] = 3, 1
    sheet = np.asarray(draw_confusion(counts, [str(n) for n in range(64)])).astype(int)
    blue = (abs(sheet - (0, 114, 178)) <= 1).all(2)
    side = 10
    assert blue.sum() == 63 * side**2
    top, left = np.argwhere(blue).min(0)
    five, seven = sheet[top + 5 * side + 3, left + 5 * side + 3], sheet[top + 5 * side + 3, left + 7 * side + 3]
    assert seven.tolist() == [round(255 + 0.6 * (c - 255)) for c in (213, 94, 0)]
    assert abs(five - [255 + (0.2 + 0.8 * 0.75**0.5) * (c - 255) for c in (0, 114, 178)]).max() <= 1
    assert (sheet[top + 6 * side + 3, left + 7 * side + 3] == 255).all()


def test_a_run_has_the_confusion_matrix_of_its_best_weights(trained: TrainResult) -> None:
    predictions = predict(trained.run)
    expected = draw_confusion(predictions.confusion_matrix(), trained.record.data.class_names)
    with Image.open(trained.run.picture_file("confusion")) as picture:
        assert picture.text["Epoch"] == str(trained.record.best.epoch)  # type: ignore[attr-defined]
        assert (np.asarray(picture) == np.asarray(expected)).all()
