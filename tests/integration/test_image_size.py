"""Images that are not square, from the option through training to a file that is given raw pixels."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data.audit import check_data
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import graph
from resnet_ops.export.config import ExportConfig
from resnet_ops.models import build
from resnet_ops.run_records import DataRecord
from resnet_ops.runs import Run
from resnet_ops.training import job, memory, preflight
from resnet_ops.training.checkpoint import read_best
from tests.conftest import Ended
from tests.data.samples import noise, shades, write_class_folders
from tests.export.samples import finish

SIZE, STORED = (16, 30), (20, 34)  # the latter a seventh larger, in steps of 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that are wider, and photos that are higher than the network's input."""
    root = tmp_path_factory.mktemp("photos")
    wide, high = (shades({"bright": 150, "dark": 110}, 16, size) for size in ((40, 90), (60, 40)))
    return write_class_folders(root, {name: wide[name] + high[name] for name in wide})


def by_torchvision(image: Image.Image) -> torch.Tensor:
    """Resize an image so that it covers `STORED`, and crop it at the center."""
    cover = (
        max(STORED[0], image.height * STORED[1] // image.width),
        max(STORED[1], image.width * STORED[0] // image.height),
    )
    steps = [v2.Resize(cover), v2.CenterCrop(SIZE), v2.PILToTensor()]
    pixels: torch.Tensor = v2.Compose(steps)(image)
    return pixels


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = TrainConfig.of(
        data=str(photos), image_size="16x30", model="resnet8", epochs=2, lr=0.02, cpus_per_worker=1, name="wide",
        random_resized_crop=True, trivial_augment=True, random_erasing=0.5, runs_dir=tmp_path_factory.mktemp("runs"),
    )  # fmt: skip
    return job.train(config).run


def assert_predicted(predicted: Ended, run: Run) -> None:
    """Compare probabilities with those of the run's network for what torchvision makes of the files."""
    assert predicted.code == 0, predicted.err
    checkpoint, _ = read_best(run)
    info, network = checkpoint.info, build("resnet8", num_classes=2).eval()
    network.load_state_dict(checkpoint.model)
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(info.mean, info.std)])
    assert len(predicted.json["predictions"]) == 64
    for row in predicted.json["predictions"]:
        with torch.no_grad():
            logits = network(normalize(by_torchvision(Image.open(row["path"])))[None])
        assert row["top"][0]["probability"] == pytest.approx(float(logits.softmax(1).max()), abs=1e-4)


def test_a_network_that_is_trained_is_used(cli: Callable[..., Ended], run: Run, tmp_path: Path) -> None:
    record, (checkpoint, _) = run.read(), read_best(run)
    info = checkpoint.info
    assert ((info.height, info.width), info.stored, record.data.stored) == (SIZE, STORED, STORED)
    assert record.augmentation == "random resized crop, horizontal flip, TrivialAugment, random erasing 0.5"
    model = finish(graph.to_onnx(info, checkpoint.model, 18), checkpoint, raw=True)
    graph.write(model, tmp_path / "model.onnx")
    assert_predicted(cli("predict", tmp_path / "model.onnx", record.config.data, "--json"), run)


@pytest.mark.slow
def test_its_export_is_proven(cli: Callable[..., Ended], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    exported = cli("export", run.path, "--onnx", "--input", "raw", "--out", file, "--json")
    assert exported.code == 0, exported.err
    assert_predicted(cli("predict", file, run.read().config.data, "--json"), run)


def test_images_are_cropped_as_by_torchvision(photos: Path) -> None:
    for whole in (False, True):
        source = open_source(DataConfig(data=str(photos), image_size="16x30"))
        object.__setattr__(source, "whole", whole)
        assert (source.record.height, source.record.width, source.record.stored) == (*SIZE, STORED)
        train = source.load("train")
        assert train.pixels.shape[1:] == (*STORED, 3)
        aspects = {90 / 40, 40 / 60}
        assert train.aspects is None if not whole else {*train.aspects} == {np.float32(each) for each in aspects}
        encoded, val = source.encoded("val"), source.load("val")
    rows = range(len(val))
    for pixels, bytes_ in zip(val.pixels, encoded.read(rows), strict=True):
        image = Image.open(io.BytesIO(bytes_))
        assert np.array_equal(pixels, by_torchvision(image).permute(1, 2, 0))


def test_images_of_that_size_are_not_resized(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {name: noise(5, 30)[:, :16] for name in ("cat", "dog")})
    record = open_source(DataConfig(data=str(tmp_path), image_size="16x30")).record
    assert (record.height, record.width, record.stored) == (16, 30, None)
    turned = open_source(DataConfig(data=str(tmp_path), image_size="30x16")).record
    assert (turned.height, turned.width, turned.stored) == (30, 16, (34, 16 + 4))


def test_both_sides_count(photos: Path) -> None:
    config = TrainConfig.of(data=str(photos), image_size="16x60", model="resnet8")
    source, _ = preflight.check_training(config, "cpu")
    assert memory.stored_bytes(source.record) == 64 * 3 * 20 * 68
    report = check_data(config)
    assert (report.height, report.width, report.stored) == (16, 60, (20, 68))
    (long,) = [finding for finding in report.findings if finding.name == "long images"]
    assert "32 images whose shape differs from 20x68" in long.summary  # the high ones
    with pytest.raises(UserError, match=r"resnet18 needs images of at least \d+x\d+ pixels; these are 16x60"):
        preflight.check_training(config.model_copy(update={"model": "resnet18"}), "cpu")
    with pytest.raises(UserError, match="--cutout 17 exceeds the image size of 16 pixels"):
        preflight.check_training(config.model_copy(update={"cutout": 17}), "cpu")


@pytest.mark.parametrize("config", [DataConfig, ExportConfig])
def test_sizes_are_read_and_nonsense_is_refused(config: type[DataConfig] | type[ExportConfig]) -> None:
    for given, size in ((224, "224"), ("224", "224"), ("224x320", "224x320"), ("96x96", "96"), ("1x4096", "1x4096")):
        assert config.of(image_size=given, **{"run": "x"} if config is ExportConfig else {}).image_size == size
    for given in ("0", "224x0", "4097", "224x", "x224", "224x320x3", "-1", "224*320", "big", "", "2.5", "1e3x2", "٢٢٤"):
        with pytest.raises(UserError, match=r"--image-size must be one side, such as 224, or height and width"):
            config.of(image_size=given, **{"run": "x"} if config is ExportConfig else {})


def test_records_of_squares_are_still_read() -> None:
    options = {"name": "x", "fingerprint": "", "class_names": ("a", "b"), "train_images": 1, "val_images": 1}
    record = DataRecord.model_validate(options | {"channels": 3, "height": 224, "width": 224, "stored": 256})
    assert record.stored == (256, 256)
    assert DataRecord.model_validate_json(record.model_dump_json()) == record
