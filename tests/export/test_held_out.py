"""Validation images of a checkpoint outside of its run are those that its training held out, or none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet_ops.config import DataConfig
from resnet_ops.data.opening import open_source
from resnet_ops.data.parallel_decode import hash_all
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.evaluated_network import open_network
from resnet_ops.evaluation.labeled_images import count_seen, open_images
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import open_validation_data
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.run_records import HeldOutRecord
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import CheckpointInfo, read_best
from resnet_ops.training.job import TrainResult

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def divided() -> Source:
    """The digits as --test-fraction 0.25 divides them."""
    return open_source(DataConfig(data="digits", test_fraction=0.25))


@pytest.fixture
def save(trained: TrainResult, divided: Source, tmp_path: Path) -> Save:
    """Save the weights of `trained` outside of the run, as if they were trained on `divided`."""
    best = read_best(trained.run)[0]

    def write(**update: object) -> Path:
        counts = tuple((0, int(count)) for count in divided.count_classes("val"))
        info = best.info.model_copy(
            update={"held_out": divided.held_out_images, "val_classes": counts, "val_correct": ""} | update
        )
        checkpoints.save(tmp_path / "c.safetensors", info, {f"model/{name}": x for name, x in best.model.items()})
        return tmp_path / "c.safetensors"

    return write


def open_data(info: CheckpointInfo | ModelMetadata, data: str | None = None) -> tuple[Source | None, bool, list[str]]:
    warnings = list[str]()
    source, is_own = open_validation_data(ExportConfig(run="c", data=data), None, info, warnings.append)
    return source, is_own, warnings


def test_training_records_what_it_held_out(trained: TrainResult) -> None:
    own, other = open_source("digits"), open_source(DataConfig(data="digits", test_fraction=0.25))
    assert read_best(trained.run)[0].info.held_out == own.held_out_images != other.held_out_images


@pytest.mark.parametrize("data", [None, "digits"])
def test_the_recorded_images_are_used(data: str | None, save: Save, divided: Source) -> None:
    info = checkpoints.read(save()).info
    trained_on = hash_all(divided.encoded("train"))
    assert np.isin(hash_all(open_source("digits").encoded("val")), trained_on).any()
    sha256 = "0" * 64
    for described in (info, ModelMetadata.of(info, sha256, None, made_by="")):
        source, is_own, warnings = open_data(described, data)
        assert source is not None
        assert not np.isin(hash_all(source.encoded("val")), trained_on).any()
        assert (len(source.encoded("val").labels), is_own, warnings) == (
            divided.record.val_images,
            described is info,
            [],
        )


@pytest.mark.parametrize("held_out", [None, HeldOutRecord(val_sha256="0" * 64)], ids=["older", "otherwise"])
def test_where_they_are_not_known_nothing_is_measured(held_out: HeldOutRecord | None, save: Save) -> None:
    file = save(held_out=held_out)
    info = checkpoints.read(file).info
    source, is_own, (warning,) = open_data(info)
    assert (source, is_own) == (None, False)
    assert "it may have been trained on any" in warning
    with pytest.raises(UserError, match="it may have been trained on any"):
        open_data(info, "digits")
    config = EvaluateConfig(run=str(file))
    network = open_network(config, print)
    images = open_images(config, network)
    images.encoded.read(images.rows.tolist())
    seen = count_seen(images, network, images.rows)
    assert (seen.trained_on, seen.chose_epoch) == (None, None)
    assert "it is not known whether the network was trained on these images" in seen.text
    assert "it may have been trained on any" in images.notes[0]


def test_an_older_checkpoint_counts_its_validation_images(save: Save) -> None:
    counts = tuple((0, int(count)) for count in open_source("digits").count_classes("val"))
    source, is_own, warnings = open_data(checkpoints.read(save(held_out=None, val_classes=counts)).info)
    assert source is not None
    assert (is_own, warnings) == (True, [])


def test_it_is_evaluated_on_them(save: Save, divided: Source) -> None:
    file = str(save())
    for config, split in ((EvaluateConfig(run=file, split="val"), "val"), (EvaluateConfig(run=file), "test")):
        images = open_images(config, open_network(config, print))
        assert (images.split, images.is_own, images.notes) == (split, True, ())
        encoded = divided.encoded(split)  # type: ignore[arg-type]
        assert images.encoded.read(range(len(images))) == encoded.read(range(len(encoded.labels)))
