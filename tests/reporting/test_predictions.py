"""Predictions of single validation images add up to what training measured."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_ops.config import TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.reporting.predictions import predict
from resnet_ops.runs import Run
from resnet_ops.training import job
from tests.data.samples import noise, write_class_folders


def test_predictions_add_up_to_what_training_measured(trained: job.TrainResult) -> None:
    predictions, best = predict(trained.run), trained.record.best
    assert best is not None
    assert predictions.accuracy == pytest.approx(best.val_accuracy)
    images = open_source("digits").load("val")
    assert (predictions.labels == images.labels).all()
    assert (predictions.pixels(7) == images.pixels[7]).all()
    counts = predictions.confusion_matrix()
    assert np.diag(counts).sum() == predictions.correct.sum()
    assert counts.sum(1).tolist() == np.bincount(images.labels).tolist()
    assert (predictions.label_probability[predictions.correct] == predictions.confidence[predictions.correct]).all()
    assert (predictions.label_probability[~predictions.correct] < predictions.confidence[~predictions.correct]).all()


def test_images_that_are_streamed_get_the_same_predictions(tmp_path: Path) -> None:
    pixels = noise(60)
    for split, rows in (("train", slice(0, 36)), ("val", slice(36, 60))):
        part = pixels[rows]
        write_class_folders(tmp_path / "images" / split, {"cat": part[::2], "dog": part[1::2]})
    broken = tmp_path / "images/val/cat/03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    config = TrainConfig.of(data=str(tmp_path / "images"), model="resnet8", epochs=1, batch_size=8, runs_dir=tmp_path)
    run = job.train(config.model_copy(update={"on_bad_image": "skip"})).run
    decoded = predict(run)
    record = run.read()
    run.write(record.model_copy(update={"config": record.config.model_copy(update={"stream": "on"})}))
    streamed = predict(run)
    assert len(decoded.labels) == len(streamed.labels) == 23
    for name in ("labels", "predicted", "confidence", "label_probability"):
        assert getattr(streamed, name) == pytest.approx(getattr(decoded, name), abs=1e-6), name
    for n in range(23):
        assert (streamed.pixels(n) == decoded.pixels(n)).all()
        assert streamed.name(n) == decoded.name(n)
        assert (np.asarray(Image.open(decoded.name(n))) == decoded.pixels(n)).all()


def test_other_images_are_refused(trained: job.TrainResult, tmp_path: Path) -> None:
    shutil.copytree(trained.run.path, tmp_path / "other")
    run = Run(tmp_path / "other")
    record = run.read()
    run.write(record.model_copy(update={"data": record.data.model_copy(update={"fingerprint": "0" * 64})}))
    with pytest.raises(UserError, match="differ from those other was trained on"):
        predict(run)
