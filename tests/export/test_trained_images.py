"""What training has seen of images is told wherever they are, and not told where it cannot be known."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from cli.console import unmeasured_images_line
from resnet_ops.config import DataConfig
from resnet_ops.data import dataset, sources
from resnet_ops.data.dataset import SPLITS
from resnet_ops.data.discovery import discover_labeled
from resnet_ops.data.opening import open_source
from resnet_ops.data.parallel_decode import hash_all
from resnet_ops.errors import UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.evaluated_network import open_network
from resnet_ops.evaluation.job import evaluate
from resnet_ops.evaluation.labeled_images import SeenImages, count_seen, open_images
from resnet_ops.export import diagnosis
from resnet_ops.export.config import DiagnoseConfig, ExportConfig
from resnet_ops.export.inputs import (
    open_validation_data,
    select_images,
    select_validation_images,
    warn_of_trained_images,
)
from resnet_ops.export.metadata import Calibration, ModelMetadata
from resnet_ops.export.trained_images import SeenCounts, TrainedImages, divided_as_trained
from resnet_ops.reporting.run_report import write
from resnet_ops.run_records import BeganFrom, HeldOutRecord, PretrainedRecord, StartRecord
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import read_best
from resnet_ops.training.job import TrainResult
from tests.conftest import Ended
from tests.data.samples import write_class_folders

BY_PATHS = "by the paths of images alone, "
TrainedOn = Callable[..., Run]


@pytest.fixture(scope="module")
def images() -> dict[str, list[bytes]]:
    """The digits as they are stored, by class."""
    train = open_source("digits").splits["train"]
    stored = zip(train.read(range(len(train.labels))), train.labels, strict=True)
    by_class: dict[str, list[bytes]] = {str(label): [] for label in range(10)}
    for image, label in stored:
        assert isinstance(image, bytes)
        by_class[str(label)].append(image)
    return by_class


@pytest.fixture
def data(images: dict[str, list[bytes]], tmp_path: Path) -> Path:
    """20 training, 5 validation and 5 test images of each digit."""
    for split, rows in (("train", slice(0, 20)), ("val", slice(20, 25)), ("test", slice(25, 30))):
        write_class_folders(tmp_path / "data" / split, {name: each[rows] for name, each in images.items()})
    return tmp_path / "data"


@pytest.fixture
def trained_on(trained: TrainResult, tmp_path: Path) -> TrainedOn:
    """Write the weights of `trained` into a run as if they were trained on other data."""

    def write(data: str | Path, **info: object) -> Run:
        run, (best, _), record = Run(tmp_path / "run"), read_best(trained.run), trained.run.read()
        source = open_source(DataConfig(data=str(data)))
        config = record.config.model_copy(update={"data": str(data)})
        checkpoints.best_file(run).parent.mkdir(parents=True)
        run.write(record.model_copy(update={"config": config, "data": source.record}))
        described = {"data": source.record.name, "data_fingerprint": source.record.fingerprint}
        held_out = {"held_out": source.held_out_images}
        tensors = {f"model/{name}": tensor for name, tensor in best.model.items()}
        updated = best.info.model_copy(update=described | held_out | info)
        checkpoints.save(checkpoints.best_file(run), updated, tensors)
        return run

    return write


def seen_of(run: Path, data: Path | None = None, **options: object) -> SeenImages:
    given = {"data": str(data)} if data else {}
    config = EvaluateConfig.of(run=str(run), **given, **options)
    network = open_network(config, print)
    opened = open_images(config, network)
    opened.encoded.read(opened.rows.tolist())
    return count_seen(opened, network, opened.rows)


def counts(seen: SeenImages) -> tuple[int, int | None, int | None]:
    return seen.images, seen.trained_on, seen.chose_epoch


def limit_read_bytes(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    for module in (dataset, sources):
        monkeypatch.setattr(module, "CONTENT_HASH_BYTES", limit)


def alone(run: Run, folder: Path) -> Path:
    """Copy its checkpoint to where there is no run."""
    return Path(shutil.copy(checkpoints.best_file(run), folder / "alone.safetensors"))


def test_much_data_is_known_by_any_name(
    data: Path, trained_on: TrainedOn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_read_bytes(monkeypatch, 0)
    run = trained_on(data).path
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.symlink_to(data)
    shutil.copytree(data, copy)
    for other in (link, copy):
        for split, expected in (("train", (200, 200, 0)), ("val", (50, 0, 50)), ("test", (50, 0, 0))):
            assert counts(seen_of(run, other, split=split)) == expected
    files = tmp_path / "files"
    for image in (data / "val").glob("*/*"):
        (files / image.parent.name).mkdir(parents=True, exist_ok=True)
        (files / image.parent.name / image.name).symlink_to(image)
    for part in (link / "val", files):
        assert seen_of(run, part).text == f"{BY_PATHS}these images chose the epoch"
    assert seen_of(run, copy / "test").text.startswith(BY_PATHS)
    # The images of their sizes alone are few enough to read.
    limit_read_bytes(monkeypatch, sum(image.stat().st_size for image in data.glob("[tv][ra]*/*/*")) - 1)
    assert seen_of(run, copy / "train").text == "the network was trained on these images"


def test_copies_of_images_from_a_bucket_are_known(data: Path, trained_on: TrainedOn) -> None:
    bucket = f"memory://{data.parent.name}/data"
    fsspec.filesystem("memory").put(str(data), bucket, recursive=True)
    run = trained_on(bucket).path
    assert [counts(seen_of(run, data / split)) for split in ("train", "val", "test")] == [
        (200, 200, 0), (50, 0, 50), (50, 0, 0),
    ]  # fmt: skip


def test_exports_warn_of_relative_paths(
    data: Path, trained_on: TrainedOn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_read_bytes(monkeypatch, 0)
    run = trained_on(data)
    info = read_best(run)[0].info
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    for relative in ("data/train", "link/train"):
        warnings = list[str]()
        source, is_own = open_validation_data(ExportConfig(run="run", data=relative), run, info, warnings.append)
        assert source is not None
        assert not is_own
        chosen = select_validation_images(source, info.class_names, "fp32", False, warnings.append)
        warn_of_trained_images(chosen, source, run, info, warnings.append)
        assert "was trained on 200 of the 200 images" in warnings[0]


def test_a_folder_of_the_name_of_a_dataset_is_not_taken_for_it(
    data: Path, trained_on: TrainedOn, tmp_path: Path
) -> None:
    run = trained_on(data.rename(tmp_path / "digits"))
    file, info = alone(run, tmp_path), read_best(run)[0].info
    assert info.data == "digits"
    assert open_validation_data(ExportConfig(run="run"), run, info, print)[1]
    exported = ModelMetadata.of(info, "", None, made_by="")
    for described in (info, exported):
        assert open_validation_data(ExportConfig(run="file"), None, described, print) == (None, False)
    with pytest.raises(UserError, match=r"It is not known which images alone\.safetensors was trained on"):
        seen_of(file)
    with pytest.raises(UserError, match="It is not known which images"):
        diagnosis._open_images(DiagnoseConfig.of(file=file, outputs=Path("a.csv")), exported)


def test_images_are_held_out_as_recorded(images: dict[str, list[bytes]], trained_on: TrainedOn, tmp_path: Path) -> None:
    """Of a checkpoint alone, and where test images come and go, which change what is held out."""
    plain = write_class_folders(tmp_path / "plain", {name: each[:20] for name, each in images.items()})
    divided = open_source(DataConfig(data="digits", test_fraction=0.25))
    run = trained_on("digits", held_out=divided.held_out_images)
    file = alone(run, tmp_path)
    among = [set(each.read(range(len(each.labels)))) for each in map(divided.encoded, SPLITS)]
    expected = [sum(image in split for each in images.values() for image in each[:20]) for split in among]
    assert min(expected) > 0
    assert counts(seen_of(file, plain)) == (200, *expected[:2])
    checkpoint = checkpoints.read(file)
    info = checkpoint.info.model_copy(update={"fitted_on_all": True})
    checkpoints.save(file, info, {f"model/{name}": tensor for name, tensor in checkpoint.model.items()})
    assert counts(seen_of(file, plain)) == (200, sum(expected[:2]), 0)
    exported = ModelMetadata.of(info, checkpoint.sha256, None, made_by="")
    others = discover_labeled(DataConfig(data=str(plain))).train.encoded
    own = TrainedImages.of(open_source("digits"), None, exported)
    assert own.count_among(others, lambda: hash_all(others)) == SeenCounts(sum(expected[:2]), 0, True)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_what_is_held_out_otherwise_now_is_not_known(
    is_recorded: bool, images: dict[str, list[bytes]], trained_on: TrainedOn, tmp_path: Path
) -> None:
    """Without its test images a dataset holds out twice as many validation images."""
    for split, rows in (("train", slice(0, 20)), ("test", slice(20, 25))):
        write_class_folders(tmp_path / "data" / split, {name: each[rows] for name, each in images.items()})
    run = trained_on(tmp_path / "data", **({} if is_recorded else {"held_out": None}))
    info = read_best(run)[0].info
    source = open_source(run.read().config)
    assert divided_as_trained(source, run, info) is not None
    val = source.encoded("val")
    copies = tmp_path / "copies"
    held_out = zip(val.labels, val.read(range(len(val.labels))), strict=True)
    write_class_folders(copies, {str(label): [image] for label, image in held_out if isinstance(image, bytes)})
    assert counts(seen_of(run.path, copies)) == (10, 0, 10)
    others = (tmp_path / "data" / "test").rename(tmp_path / "others")
    assert divided_as_trained(open_source(run.read().config), run, info) is None
    assert counts(seen_of(run.path, copies)) == (10, None, None)
    assert counts(seen_of(run.path)) == (40, None, None)
    assert counts(seen_of(run.path, others)) == (50, 0, 0)
    warnings = list[str]()
    source = open_source(run.read().config)
    warn_of_trained_images(select_images(source, "val", info.class_names), source, run, info, warnings.append)
    assert "may have been trained on some of the images" in warnings[0]


def test_copies_of_training_images_are_counted_and_give_no_test_accuracy(data: Path, trained_on: TrainedOn) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(data / "train/3/00.png", data / "val/3" / name)
    shutil.copy(data / "train/3/01.png", data / "test/3/a.png")
    run = trained_on(data)
    assert counts(seen_of(run.path, split="val")) == (52, 2, 52)
    text = "2 of these images are training images of the network and 52 of these images chose the epoch"
    assert seen_of(run.path, split="val").text == text
    result = evaluate(run.path)
    assert (result.split, result.trained_on, result.recorded) == ("test", 1, False)
    best = run.read().best
    assert best is not None
    assert best.test_accuracy is None
    (data / "test/3/a.png").unlink()
    other = shutil.copytree(data, data.with_name("other"))
    shutil.rmtree(other / "test/3")
    assert not evaluate(EvaluateConfig(run=str(run.path), data=str(other))).recorded


def test_an_accuracy_on_copies_of_training_images_is_said_to_be_one_wherever_it_stands(
    data: Path, trained_on: TrainedOn, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(data / "train/3/00.png", data / "val/3" / name)
    run = trained_on(data)
    run.write(run.read().model_copy(update={"data": open_source(run.read().config).prepare().record}))
    copies, notes = "2 of the 52 validation images are training images, too", list[str]()
    open_validation_data(ExportConfig(run="run"), run, read_best(run)[0].info, notes.append)
    assert notes[0].startswith(copies)
    assert copies in " ".join(cli("runs", "show", run.path).out.split())
    run.write_epochs([read_best(run)[0].info.validated])
    write([run], tmp_path / "report.html")
    assert copies in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("began_from", "ending"),
    [
        ("", ""),
        ("cats.pth", " since it began from cats.pth"),  # as earlier versions wrote it
        (PretrainedRecord(origin="cats.pth"), " since it began from cats.pth"),
        (None, ", as far as is known"),
    ],
)
def test_a_checkpoint_alone_says_what_it_began_from(
    began_from: BeganFrom, ending: str, images: dict[str, list[bytes]], trained_on: TrainedOn, tmp_path: Path
) -> None:
    held_out = open_source(DataConfig(data="digits", test_fraction=0.25)).held_out_images
    file = alone(trained_on("digits", held_out=held_out, began_from=began_from), tmp_path)
    assert seen_of(file).text == f"nothing was trained or chosen on these images{ending}"


def test_what_pretrained_weights_have_seen_is_counted(trained_on: TrainedOn, tmp_path: Path) -> None:
    """By what each held out of the same images, also weights before those, and where the network has others."""
    divided, undivided = (open_source(DataConfig(data="digits", test_fraction=each)) for each in (0.25, None))
    fingerprint, whole = divided.record.fingerprint, undivided.held_out_images

    def began_from(origin: str, held_out: HeldOutRecord | None, before: BeganFrom = "", **more: bool) -> BeganFrom:
        return PretrainedRecord(
            origin=origin, data_fingerprint=fingerprint, held_out=held_out, began_from=before, **more
        )

    same, base, images = divided.held_out_images, began_from("run base", whole), divided.record.test_images
    saw = f"which was trained or chosen on {images} of them"
    cases: list[tuple[BeganFrom, str, int | None]] = [
        (began_from("run same", same), "run same", 0),
        (base, f"run base, {saw}", images),
        (began_from("run same", same, base), f"run base, {saw}", images),
        (began_from("run all", whole, fitted_on_all=True), f"run all, {saw}", images),
        (began_from("run old", None), "run old, which may have been trained on them", None),
        (began_from("run all", same, fitted_on_all=True), "run all", 0),
    ]
    run = trained_on("digits", held_out=divided.held_out_images)
    for before, text, count in cases:
        checkpoint = read_best(run)[0]
        info = checkpoint.info.model_copy(update={"began_from": before})
        checkpoints.save(checkpoints.best_file(run), info, {f"model/{n}": each for n, each in checkpoint.model.items()})
        seen = seen_of(alone(run, tmp_path))
        assert seen.text == f"nothing was trained or chosen on these images since it began from {text}"
        assert (seen.origin_saw, seen.is_unseen) == (count, count == 0)
    val = f"which was trained or chosen on {divided.record.val_images} of them"
    assert seen_of(run.path, split="val").text == f"these images chose the epoch; it began from run all, {val}"


def test_what_pretrained_weights_have_seen_of_other_images_is_counted(trained_on: TrainedOn, data: Path) -> None:
    source = open_source("digits")
    base = PretrainedRecord(
        origin="run base", data_fingerprint=source.record.fingerprint, held_out=source.held_out_images
    )
    run = trained_on(data, began_from=base)
    text = "200 of these images are training images of the network and 50 of these images chose the epoch"
    assert seen_of(run.path, Path("digits")).text == (
        f"{text}; it began from run base, which was trained or chosen on 1,797 of them"
    )
    shutil.rmtree(data)
    info, warnings = read_best(run)[0].info, list[str]()
    chosen = select_validation_images(source, info.class_names, "fp32", False, warnings.append)
    warn_of_trained_images(chosen, source, run, info, warnings.append)
    began = "run began from run base, which was trained on 1,438 of the 1,797 images"
    assert warnings == [f"{began}: an accuracy on these tells nothing of others."]


def test_what_pretrained_weights_have_seen_in_other_data_is_counted_where_that_is_at_hand(
    images: dict[str, list[bytes]], data: Path, trained_on: TrainedOn, tmp_path: Path
) -> None:
    """The fingerprint of the data is another as soon as one image is; a run beside it tells where these images lie."""
    grown = write_class_folders(tmp_path / "grown", {name: each[:31] for name, each in images.items()})
    apart = write_class_folders(tmp_path / "apart", {name: each[40:60] for name, each in images.items()})
    for folder, saw in ((apart, 0), (grown, 50)):
        before = open_source(DataConfig(data=str(folder)))
        origin = f"run {folder.name}-run"
        base = PretrainedRecord(
            origin=origin,
            data_fingerprint=before.record.fingerprint,
            held_out=before.held_out_images,
            fitted_on_all=True,
        )
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = trained_on(data, began_from=base)
        record, info, own = run.read(), read_best(run)[0].info, f"it began from {origin}"
        run.write(record.model_copy(update={"start": StartRecord(**dict(base), sha256="", head="kept")}))
        assert f"images, untouched since {own}: resnet-ops evaluate" in unmeasured_images_line(run, "")
        config = record.config.model_copy(update={"data": str(folder), "fit_all": True})
        Run(shutil.copytree(run.path, tmp_path / f"{folder.name}-run")).write(
            record.model_copy(update={"config": config, "data": before.record})
        )
        result = evaluate(run.path)
        assert (result.pretrained_on, result.recorded) == (saw, saw == 0)
        test, warnings = open_source(DataConfig(data=str(data / "test"))), list[str]()
        chosen = select_validation_images(test, info.class_names, "fp32", False, print)
        warn_of_trained_images(chosen, test, run, info, warnings.append)
        assert [text.partition(":")[0] for text in warnings] == (
            [f"run began from {origin}, which was trained on 50 of the 50 images"] if saw else []
        )
        folder.rename(tmp_path / f"{folder.name}-gone")
        result = evaluate(run.path)
        assert (result.pretrained_on, result.recorded) == (None, False)
        assert result.seen.endswith(f"since {own}, which may have been trained on them: its images are not at hand")
        warn_of_trained_images(chosen, test, run, info, warnings.append)
        assert f"{origin}, whose images are not at hand, and which may have been trained on some of" in warnings[-1]


def test_images_that_a_temperature_was_fitted_on_are_no_others(
    images: dict[str, list[bytes]], trained_on: TrainedOn, data: Path, tmp_path: Path
) -> None:
    """Be they of a dataset of their own, or the validation images of the training, or copies of these."""
    run = trained_on(data)
    other = write_class_folders(tmp_path / "other", {name: each[30:40] for name, each in images.items()})
    own, fitted_on_others = (open_source(DataConfig(data=str(each))).record.fingerprint for each in (data, other))
    few = write_class_folders(tmp_path / "few", {"3": images["3"][24:26]})

    def text(fitted_on: str, of: int, given: Path | None = None, **options: object) -> str:
        config = EvaluateConfig.of(run=str(run.path), data=str(given) if given else None, **options)
        calibration = Calibration(temperature=2.0, images=of)
        network = replace(open_network(config, print), calibration=calibration, fitted_on=fitted_on)
        opened = open_images(config, network)
        opened.encoded.read(opened.rows.tolist())
        return count_seen(opened, network, opened.rows).text

    unseen, fitted = "nothing was trained or chosen on these images", "; its temperature was fitted on"
    assert text(fitted_on_others, 100, other) == f"{unseen}{fitted} these images"
    assert text(fitted_on_others, 99, other) == f"{unseen}{fitted} some of these images"
    assert text(fitted_on_others, 100) == text(own, 50, other) == text(own, 50) == unseen
    for seen in (text(own, 50, split="val"), text(own, 50, data / "val")):
        assert seen == f"these images chose the epoch{fitted} these images"
    assert text(own, 50, few) == f"1 of these images chose the epoch{fitted} some of these images"
