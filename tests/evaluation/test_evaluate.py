"""`evaluate` gives the metrics of the network's own predictions, whatever form it has, and says what it has seen."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from resnet_ops import EvaluateConfig, evaluate, runs
from resnet_ops.config import DataConfig
from resnet_ops.data.augment import normalize
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.evaluation.evaluated_network import open_network
from resnet_ops.evaluation.labeled_images import SeenImages
from resnet_ops.evaluation.results import EvaluateResult
from resnet_ops.export.config import DiagnoseConfig
from resnet_ops.export.diagnosis import diagnose
from resnet_ops.export.inputs import select_validation_images
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job
from resnet_ops.training.checkpoint import read_best
from tests.conftest import DigitFiles, Ended
from tests.data.samples import write_class_folders, write_parquet
from tests.evaluation.test_evaluation_metrics import assert_metrics_are_those_of_scikit_learn
from tests.export.samples import properties_of
from tests.json_keys import assert_keys
from tests.reporting.reading import Page

NUMBERS = tuple("0123456789")


@pytest.fixture(scope="module")
def run(trained: job.TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the trained run, to write evaluations into."""
    copy = Run(tmp_path_factory.mktemp("evaluated") / "copy")
    shutil.copytree(trained.run.path, copy.path)
    return copy


@pytest.fixture(scope="module")
def of_run(run: Run) -> EvaluateResult:
    return evaluate(run.path)


@dataclass(frozen=True)
class Digits:
    """The built-in digits as they are stored, by class."""

    train: dict[str, list[bytes]]
    val: dict[str, list[bytes]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    source = open_source("digits")

    def by_class(split: str) -> dict[str, list[bytes]]:
        encoded = source.encoded(split)  # type: ignore[arg-type]
        images = encoded.read(range(len(encoded.labels)))
        return {
            name: [image for image, label in zip(images, encoded.labels, strict=True) if label == n]  # type: ignore[misc]
            for n, name in enumerate(NUMBERS)
        }

    return Digits(by_class("train"), by_class("val"))


@pytest.fixture(scope="module")
def with_test_images(run: Run, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same weights, as if they were trained on a folder that has test images: 12 of each class."""
    folder = tmp_path_factory.mktemp("own")
    for split, rows in (("train", slice(0, 30)), ("val", slice(30, 40)), ("test", slice(40, 52))):
        write_class_folders(folder / "data" / split, {name: images[rows] for name, images in digits.train.items()})
    return as_if_trained_on(folder / "data", run, folder / "runs" / "own")


def as_if_trained_on(images: Path, run: Run, copy: Path) -> Run:
    own = Run(copy)
    shutil.copytree(run.path, own.path)
    record, (checkpoint, _) = run.read(), read_best(run)
    config = record.config.model_copy(update={"data": str(images)})
    data = open_source(config).record
    own.write(record.model_copy(update={"config": config, "data": data}))
    info = checkpoint.info.model_copy(update={"data_fingerprint": data.fingerprint, "data": data.name})
    tensors = {f"model/{name}": value for name, value in checkpoint.model.items()}
    checkpoints.save(checkpoints.best_file(own), info, tensors)
    return own


def probabilities_of(run: Run, pixels: np.ndarray) -> np.ndarray:
    checkpoint, _ = read_best(run)
    network = checkpoint.info.build_network()
    network.load_state_dict(checkpoint.model)
    with torch.inference_mode():
        x = normalize(torch.from_numpy(pixels), checkpoint.info.mean, checkpoint.info.std)
        return np.asarray(network.eval()(x).double().softmax(1))


def test_the_metrics_are_those_of_the_networks_own_predictions(run: Run, of_run: EvaluateResult) -> None:
    images = open_source("digits").load("val")
    probabilities = probabilities_of(run, images.pixels)
    assert_metrics_are_those_of_scikit_learn(of_run, probabilities, images.labels, NUMBERS)
    best = run.read().best
    assert best is not None
    assert of_run.top1 == pytest.approx(best.val_accuracy)
    assert (of_run.split, of_run.seen, of_run.chose_epoch) == ("val", "these images chose the epoch", 359)
    assert not of_run.recorded
    rows = list(csv.DictReader(of_run.predictions.read_text().splitlines()))
    assert [row["label"] for row in rows] == [str(label) for label in images.labels]
    order = np.argsort(-probabilities, axis=1)[:, :5]
    ranks = ("prediction", "top2", "top3", "top4", "top5")
    assert [[row[name] for name in ranks] for row in rows] == [[str(n) for n in each] for each in order]
    assert [float(row["top2_probability"]) for row in rows] == pytest.approx(
        np.take_along_axis(probabilities, order, 1)[:, 1], rel=1e-4
    )
    wrong = probabilities.argmax(1) != images.labels
    first = of_run.mistakes[0]
    assert first.probability == pytest.approx(probabilities.max(1)[wrong].max())
    assert len(of_run.mistakes) == min(24, wrong.sum())


def test_what_is_written_holds_the_same(of_run: EvaluateResult) -> None:
    assert {file.name for file in of_run.folder.iterdir()} == {
        "evaluation.json", "evaluation.md", "evaluation.html", "predictions.csv"
    }  # fmt: skip
    assert of_run.folder == of_run.file.parents[1] / "evaluation-val"
    stored = json.loads((of_run.folder / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(of_run.model_dump(mode="json")))
    page = Page(of_run.page.read_text())
    assert "these images chose the epoch" in page.text
    assert page.loads() == []
    assert page.repeated_ids() == set()
    rows = {row[0]: row for row in page.rows if len(row) == 7}
    for each in of_run.classes:
        assert rows[each.name][1:3] == [str(each.images), f"{100 * (each.recall or 0):.2f}%"]
    text = (of_run.folder / "evaluation.md").read_text()
    assert f"| top-1 accuracy | {100 * of_run.top1:.2f}% (" in text


@pytest.mark.parametrize("form", ["normalized", "raw", "checkpoint", "weights"])
def test_other_forms_of_the_network_give_the_same(
    form: str, run: Run, of_run: EvaluateResult, digit_files: DigitFiles, tmp_path: Path
) -> None:
    if form == "weights":
        info = digit_files.checkpoint.info
        torch.save(digit_files.checkpoint.model, tmp_path / "weights.pth")
        numbers = {name: ",".join(map(str, getattr(info, name))) for name in ("mean", "std")}
        config = EvaluateConfig(
            run=str(tmp_path / "weights.pth"), model="resnet8", image_size=8, **numbers, data="digits"
        )
        result = evaluate(config)
        notes: list[str] = []
        config = EvaluateConfig(run=str(run.path), split="train", output=tmp_path / "train", suspects=3)
        split = evaluate(config, notes.append)
        assert any("trained on 1,438 of these images, of which it may have memorized" in note for note in notes), notes
        assert (result.split, result.trained_on, result.chose_epoch) == (None, None, None)
        assert "not known" in result.seen
        assert split.seen == "the network was trained on these images"
        assert result.correct == of_run.correct + split.correct
        assert result.folder == tmp_path / "weights-evaluation-digits"
        return
    given = {"normalized": digit_files.normalized, "raw": digit_files.raw, "checkpoint": of_run.file}[form]
    result = evaluate(EvaluateConfig(run=str(given), output=tmp_path / "evaluated"))
    assert result.kind == ("run" if form == "checkpoint" else "onnx")
    alone = "" if form == "checkpoint" else "by the metadata of the file alone, "  # which is outside of the run
    assert (result.seen, result.split, result.is_own_data) == (alone + of_run.seen, "val", True)
    assert result.confusions == of_run.confusions
    assert [each.model_dump() for each in result.classes] == [each.model_dump() for each in of_run.classes]
    for name in ("negative_log_likelihood", "mean_confidence", "expected_calibration_error", "top5"):
        assert getattr(result, name) == pytest.approx(getattr(of_run, name), abs=1e-4), name


@pytest.mark.parametrize(
    ("claim", "value", "message"),
    [
        ("fitted_on_all", "true", "fitted on all is True, expected False"),
        ("epoch", "1", "epoch is 1, expected"),
        ("data_fingerprint", "of other images", "data fingerprint is of other images, expected"),
        ("model", "plain8", "is not the plain8 that its metadata name: "),
    ],
)
def test_a_file_in_its_run_is_not_believed_against_the_checkpoint(
    claim: str, value: str, message: str, trained: job.TrainResult, digit_files: DigitFiles, tmp_path: Path
) -> None:
    shutil.copytree(trained.run.path, tmp_path / "run")
    file = tmp_path / "run" / "export" / "model.onnx"
    file.parent.mkdir(exist_ok=True)
    model = onnx.load(digit_files.normalized)
    changed = properties_of(model) | {claim: value}
    onnx.helper.set_model_props(model, changed)
    file.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(UserError, match=message) as refused:
        evaluate(EvaluateConfig(run=str(file)))
    assert "resnet-ops validate" in refused.value.remedy


def test_a_file_in_its_run_has_the_weights_of_its_checkpoint(
    trained: job.TrainResult, digit_files: DigitFiles, tmp_path: Path
) -> None:
    shutil.copytree(trained.run.path, tmp_path / "run")
    file, model = tmp_path / "run" / "other.onnx", onnx.load(digit_files.normalized)
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    changed = np.roll(onnx.numpy_helper.to_array(weights), 1, 0)
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    file.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(UserError, match=r"does not have the weights of model.safetensors, its checkpoint: fc: weight"):
        open_network(EvaluateConfig(run=str(file)), print)

    model, notes = onnx.load(digit_files.normalized), list[str]()
    model.graph.node.append(onnx.helper.make_node("Identity", [model.graph.output[0].name], ["unused"], name="more"))
    file.write_bytes(model.SerializeToString(deterministic=True))
    assert not open_network(EvaluateConfig(run=str(file)), notes.append).is_confirmed
    assert re.search("is known from its metadata only: .*left over", notes[0])


def test_a_file_is_what_it_says_and_the_one_that_was_compared(digit_files: DigitFiles, tmp_path: Path) -> None:
    file, model = tmp_path / "m.onnx", onnx.load(digit_files.normalized)
    onnx.helper.set_model_props(model, properties_of(model) | {"precision": "fp16"})
    file.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(UserError, match="not what its metadata says: metadata says fp16, weights are fp32"):
        open_network(EvaluateConfig(run=str(file)), print)
    shutil.copy(digit_files.normalized, file)
    with pytest.raises(UserError, match="changed while it was verified"):
        open_network(EvaluateConfig(run=str(file)), lambda _: file.write_bytes(digit_files.raw.read_bytes()))


def test_an_honest_file_in_its_run_needs_no_reservation(
    trained: job.TrainResult, of_run: EvaluateResult, digit_files: DigitFiles, tmp_path: Path
) -> None:
    shutil.copytree(trained.run.path, tmp_path / "run")
    file = tmp_path / "run" / "copied.onnx"
    shutil.copy(digit_files.normalized, file)
    notes: list[str] = []
    result = evaluate(EvaluateConfig(run=str(file)), notes.append)
    assert (result.seen, result.correct, notes) == (of_run.seen, of_run.correct, [])


def test_diagnose_reads_the_predictions(of_run: EvaluateResult, digit_files: DigitFiles) -> None:
    result = diagnose(DiagnoseConfig(file=digit_files.normalized, outputs=of_run.predictions, data="digits"))
    assert (result.verdict, result.bad_lines, result.column) == ("equal", (), "prediction")


def test_the_accuracy_on_own_test_images_is_recorded(with_test_images: Run) -> None:
    own = with_test_images
    result = evaluate(own.path)
    assert (result.split, result.images, result.recorded) == ("test", 120, True)
    assert result.seen == "nothing was trained or chosen on these images"
    began_elsewhere = SeenImages(120, 0, 0, "run other")
    assert began_elsewhere.text == "nothing was trained or chosen on these images since it began from run other"
    assert own.read().best.test_accuracy == result.top1  # type: ignore[union-attr]
    assert runs.summarize(own.path.parent).runs[0].test_accuracy == result.top1
    data = Path(own.read().config.data)
    again = evaluate(EvaluateConfig(run=str(own.path), data=str(data)))
    assert (again.folder, again.is_own_data) == (result.folder, True)
    elsewhere = evaluate(EvaluateConfig(run=str(own.path), data=str(data / "val")))
    assert (elsewhere.is_own_data, elsewhere.recorded) == (False, False)
    assert elsewhere.seen == "these images chose the epoch"
    assert elsewhere.folder.name == "evaluation-val"


def test_the_accuracy_of_other_weights_or_images_is_not_recorded(with_test_images: Run, tmp_path: Path) -> None:
    """Not of a checkpoint of the same epoch from elsewhere, of weights that were replaced, of another test/."""
    own = Run(shutil.copytree(with_test_images.path, tmp_path / "own"))
    record, (best, _) = own.read(), read_best(own)
    assert record.best is not None
    own.write(record.model_copy(update={"best": record.best.model_copy(update={"test_accuracy": None})}))
    tensors = {f"model/{name}": value + 1 if name == "fc.bias" else value for name, value in best.model.items()}
    (own.path / "elsewhere").mkdir()
    other = own.path / "elsewhere" / "model.safetensors"
    checkpoints.save(other, best.info, tensors)
    result = evaluate(EvaluateConfig(run=str(other)))
    assert (result.kind, result.split, result.recorded) == ("checkpoint", "test", False)

    kept = checkpoints.best_file(own).read_bytes()
    replaced = evaluate(own.path, on_progress=lambda *_: shutil.copy(other, checkpoints.best_file(own)))
    assert (replaced.kind, replaced.recorded) == ("run", False)
    checkpoints.best_file(own).write_bytes(kept)

    copy = shutil.copytree(record.config.data, tmp_path / "copy")
    own.write(record.model_copy(update={"config": record.config.model_copy(update={"data": str(tmp_path / "gone")})}))
    moved = evaluate(EvaluateConfig(run=str(own.path), data=str(copy)))
    assert (moved.kind, moved.is_own_data, moved.trained_on, moved.recorded) == ("run", True, 0, False)
    own.write(record.model_copy(update={"config": record.config.model_copy(update={"data": str(copy)})}))
    assert evaluate(own.path).recorded


def test_the_accuracy_of_the_few_images_that_are_not_broken_is_not_recorded(
    with_test_images: Run, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """Of 120 more than 6 may not be: `--max-bad-images`; up to these, their number is said."""
    own = Run(shutil.copytree(with_test_images.path, tmp_path / "own"))
    record = own.read()
    assert record.best is not None
    unmeasured = record.best.model_copy(update={"test_accuracy": None, "test_images": None})
    data = Path(shutil.copytree(record.config.data, tmp_path / "data"))
    config = record.config.model_copy(update={"data": str(data)})
    own.write(record.model_copy(update={"config": config, "best": unmeasured}))
    images = sorted((data / "test").rglob("*.png"))
    for broken, recorded in ((7, False), (6, True)):
        good = {file: file.read_bytes() for file in images[:broken]}
        for file in good:
            file.write_bytes(b"no image")
        result = evaluate(own.path)
        assert (result.images, result.recorded) == (120 - broken, recorded)
        for file, content in good.items():
            file.write_bytes(content)
    assert cli("runs", "show", own.path, "--json").json["measured_images"] == 114
    assert f"{100 * result.top1:.2f}% on 114 images" in cli("runs", "show", own.path).out


def test_other_columns_of_the_same_files_are_other_labels_and_images(run: Run, digits: Digits, tmp_path: Path) -> None:
    """With and without --data they are evaluated, and their accuracy is not recorded as that of the run's own."""
    data, labels = tmp_path / "data", np.repeat(np.arange(10), 10)
    for split, rows in (("train", slice(0, 10)), ("val", slice(10, 20)), ("test", slice(20, 30))):
        images = [image for each in digits.train.values() for image in each[rows]]
        file = write_parquet(data / f"{split}-0.parquet", images, labels.tolist(), NUMBERS)
        table = pq.read_table(file)
        table = table.append_column("other_label", pa.array([NUMBERS[9 - n] for n in labels]))
        pq.write_table(table.append_column("other_image", table["image"].combine_chunks()[::-1]), file)
    own = as_if_trained_on(data, run, tmp_path / "runs" / "own")
    right = evaluate(own.path)
    assert right.recorded
    rows = list(csv.DictReader(right.predictions.read_text().splitlines()))
    of_mirrored = sum(int(row["prediction"]) == 9 - int(row["label"]) for row in rows) / 100
    for given in ({}, {"data": str(data)}):
        for column in ({"label_column": "other_label"}, {"image_column": "other_image"}):
            result = evaluate(EvaluateConfig(run=str(own.path), **given, **column))
            assert (result.top1, result.images) == (of_mirrored, 100)
            assert (result.is_own_data, result.recorded, result.trained_on) == (False, False, 0)
            assert result.folder != right.folder
    typed = evaluate(EvaluateConfig(run=str(own.path), data=str(data), label_column="label"))
    assert (typed.is_own_data, typed.recorded) == (True, True)
    assert own.read().best.test_accuracy == right.top1  # type: ignore[union-attr]


def test_test_images_that_pretrained_weights_have_seen_are_not_unseen(
    trained: job.TrainResult, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """They were training images of the weights, which held out none: `train` and `evaluate` say so."""
    options = ("--runs-dir", tmp_path, "--model", "resnet8", "--epochs", 1, "--test-fraction", 0.2)
    weights = trained.run.best / "model.safetensors"
    ended = cli("train", *options, "--weights", weights, "--name", "child", "--cpus-per-worker", 1)
    images = f"359 images, which {weights} may have been trained on: resnet-ops evaluate child"
    assert " ".join(images.split()) in " ".join(ended.out.split())
    first, source = trained.record, open_source(Run(tmp_path / "child").read().config)
    seen = set(open_source(first.config).encoded("train").read(range(first.data.train_images)))
    test = source.encoded("test").read(range(source.record.test_images))
    result = evaluate(tmp_path / "child")
    trained_on = sum(image in seen for image in test)
    assert (result.split, result.trained_on, result.chose_epoch, result.recorded) == ("test", 0, 0, False)
    assert result.pretrained_on == trained_on == 359
    assert result.seen == (
        "nothing was trained or chosen on these images since it began from "
        f"{weights}, which was trained or chosen on 359 of them"
    )
    best = Run(tmp_path / "child").read().best
    assert best is not None
    assert best.test_accuracy is None


def test_images_of_any_origin(
    run: Run, digits: Digits, tmp_path: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of classes in another order, some unknown, some missing, one broken, some seen in training."""
    monkeypatch.chdir(tmp_path)
    images = {name: digits.val[name][:8] for name in "987"}
    images["8"][:3] = digits.train["8"][:3]
    write_class_folders(tmp_path / "images", images | {"A|<b>": digits.val["0"][:2]})
    (tmp_path / "images/7/00.png").write_bytes(b"no image")
    ended = cli("evaluate", run.path, "--data", "images", "--expect", 50, "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert_keys("evaluate", result)
    assert (result["images"], result["bad_images"], result["left_out"]) == (23, 1, {"A|<b>": 2})
    assert (result["trained_on"], result["chose_epoch"]) == (3, 20)
    assert result["missing_classes"] == list("0123456")
    assert result["expectation"]["met"]
    for line in (
        "Left out 2 images of classes that the network does not have: A|<b>.",
        "Left out 1 image that cannot be decoded, first: ",
        "There are no images of 7 of the network's classes, such as 0.",
        "3 of these images are training images of the network and 20 of these images chose the epoch.",
    ):
        assert line in ended.err
    assert "A|<b>" not in (run.path / "evaluation-images/evaluation.html").read_text()
    wrong = sorted((tmp_path / "images").glob("[789]"))
    for folder, other in zip(wrong, [*wrong[1:], wrong[0]], strict=True):  # 7 is called 8 and so on
        folder.rename(other.with_name(f"new {other.name}"))
    for folder in (tmp_path / "images").glob("new *"):
        folder.rename(folder.with_name(folder.name[-1]))
    ended = cli("evaluate", run.path, "--data", "images", "--expect", 90)
    assert ended.code == 1
    assert "below by more than chance: 90% is expected" in ended.err


def test_planted_wrong_labels_are_suspected(
    run: Run, digits: Digits, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """5% of the validation images get the label of another class, by chance; guessing would find 5% of them."""
    random = np.random.default_rng(0)
    images = [(image, name) for name, of_class in digits.val.items() for image in of_class]
    planted = set(random.choice(len(images), len(images) // 20, replace=False).tolist())
    labeled: dict[str, list[bytes]] = {name: [] for name in NUMBERS}
    wrong = set()
    for n, (image, name) in enumerate(images):
        label = str((int(name) + random.integers(1, 10)) % 10) if n in planted else name
        if n in planted:
            wrong.add(f"{label}/{len(labeled[label]):02}.png")
        labeled[label].append(image)
    write_class_folders(tmp_path / "mislabeled", labeled)
    data, folder = tmp_path / "mislabeled", tmp_path / "evaluated"
    ended = cli("evaluate", run.path, "--data", data, "--suspects", len(wrong), "--output", folder, "--json")
    result = ended.json
    found = {"/".join(Path(each["path"]).parts[-2:]) for each in result["suspects"]}
    assert len(found & wrong) >= 0.8 * len(wrong), (found, wrong)
    assert len(result["suspects"]) <= len(wrong)
    assert result["label_issues"] >= len(result["suspects"])
    margins = [each["label_probability"] - each["probability"] for each in result["suspects"]]
    assert margins == sorted(margins)
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert min(float(row["label_margin"]) for row in rows) == pytest.approx(margins[0], rel=1e-4)
    assert "suspected wrong labels" in ended.err
    assert "may have memorized" not in ended.err
    page = Page((folder / "evaluation.html").read_text())
    assert "Suspected wrong labels" in page.text


def test_classes_are_matched_by_order_where_one_side_has_numbers(
    run: Run, digits: Digits, tmp_path: Path, of_run: EvaluateResult
) -> None:
    names = [f"n0{n}" for n in range(10)]
    write_class_folders(tmp_path / "wnids", {names[n]: digits.val[str(n)] for n in range(10)})
    notes: list[str] = []
    result = evaluate(EvaluateConfig(run=str(run.path), data=str(tmp_path / "wnids")), notes.append)
    assert result.confusions == of_run.confusions
    assert "n00 is 0" in notes[0]


def test_numbers_are_places_of_classes_called_from_1_to_10(
    run: Run, digits: Digits, tmp_path: Path, of_run: EvaluateResult
) -> None:
    """For `evaluate` and `export`: by name all but one would be the class before."""
    best = read_best(run)[0]
    info = best.info.model_copy(update={"class_names": tuple(str(n + 1) for n in range(10))})
    file, notes = tmp_path / "weights.safetensors", list[str]()
    checkpoints.save(file, info, {f"model/{name}": value for name, value in best.model.items()})
    images = [(image, int(name)) for name, of_class in digits.val.items() for image in of_class]
    write_parquet(tmp_path / "numbers/a.parquet", *zip(*images, strict=True), names=())
    result = evaluate(EvaluateConfig(run=str(file), data=str(tmp_path / "numbers")), notes.append)
    assert (result.images, result.correct) == (359, of_run.correct)
    assert "as the images have numbers for names: 0 is 1." in notes[0]
    source = open_source(DataConfig(data=str(tmp_path / "numbers")))
    chosen = select_validation_images(source, info.class_names, "fp32", False, notes.append)
    assert chosen.labels.tolist() == [label for _, label in images]
    assert notes[-1] == notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "has no test images"),
        ({"data": "{folder}/cats"}, "No image of .* has a class that copy knows; its first class is 'lynx'"),
        ({"data": "{folder}/cats", "split": "val"}, "has no validation images"),
        ({"data": "{folder}/nothing"}, "does not exist"),
        ({"output": "{folder}/cats"}, "no evaluation that could be replaced: it contains lynx"),
        ({"output": "{folder}/no/folder"}, "does not exist"),
        ({"mean": "0.5"}, "--mean applies only to weights trained elsewhere"),
        ({"run": "missing"}, "There is no run called 'missing'"),
        ({"run": "{folder}/missing.onnx"}, "does not exist"),
        ({"run": "{folder}/missing.pth", "model": "resnet8"}, "does not exist"),
        ({"run": "{folder}/broken.onnx"}, "is damaged"),
        ({"provider": "cpu"}, "belongs to ONNX files"),
        ({"run": "x.onnx", "model": "resnet8"}, "says itself"),
        ({"data": "{folder}/broken"}, "No image of .* can be decoded, such as .*00.png: it is not an image"),
    ],
)
def test_errors(options: dict[str, str], message: str, run: Run, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "cats", {"tabby": [b"1"], "lynx": [b"2"]})
    write_class_folders(tmp_path / "broken", {"1": [b"no image"], "2": [b""]})
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    values = {name: value.format(folder=tmp_path) for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig.of(**{"run": str(run.path), "runs_dir": tmp_path} | values))


def test_images_that_changed_are_refused(with_test_images: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    shutil.copytree(with_test_images.path, other.path)
    record = other.read()
    other.write(record.model_copy(update={"config": record.config.model_copy(update={"data": "digits"})}))
    with pytest.raises(UserError, match="differ from those other was trained on"):
        evaluate(other.path)
