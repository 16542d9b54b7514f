"""Proofs that cannot use all images take a stratified sample, the same each time, and say so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.utils.flop_counter import FlopCounterMode

from resnet_ops.data.opening import open_source
from resnet_ops.export import budget, graph, precision, proof, runtime
from resnet_ops.export.budget import macs_per_image, proof_size
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.inputs import ValidationImages, select_images
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.metadata_checks import check_recorded_proof
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.reference import Reference
from resnet_ops.significance import sampling_margin
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.training.job import TrainResult
from tests.conftest import Ended
from tests.export.samples import InMemoryImages, change, copy, properties_of, verify_model


def labeled(labels: np.ndarray) -> ValidationImages:
    return ValidationImages(InMemoryImages([], labels), np.arange(len(labels)), labels)


@pytest.mark.parametrize("count", [1, 7, 50, 333, 999])
def test_a_sample_has_of_each_class_its_share(count: int) -> None:
    labels = np.random.default_rng(1).choice(12, 1000, p=np.arange(1, 13) / 78)
    images = labeled(labels)
    drawn = images.stratified(count)
    assert len(drawn) == len(set(drawn.rows.tolist())) == count
    np.testing.assert_array_equal(drawn.rows, np.sort(drawn.rows))
    np.testing.assert_array_equal(drawn.labels, labels[drawn.rows])
    shares = np.bincount(labels, minlength=12) * count / len(labels)
    assert np.abs(np.bincount(drawn.labels, minlength=12) - shares).max() <= 1
    np.testing.assert_array_equal(drawn.rows, images.stratified(count).rows)


def test_within_a_class_it_is_drawn_from_all_over() -> None:
    rows = labeled(np.zeros(1000, np.int64)).stratified(100).rows
    assert 400 < rows.mean() < 600
    assert len(np.unique(np.diff(rows))) > 10  # evenly spaced rows may all be of one scene, or camera


def test_all_are_taken_where_there_are_no_more() -> None:
    images = labeled(np.arange(9) % 3)
    assert images.stratified(9) is images
    assert images.stratified(50) is images


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_multiply_adds_are_those_that_torch_counts(
    form: str, model: onnx.ModelProto, checkpoint: Checkpoint, images: ValidationImages
) -> None:
    network = checkpoint.info.build_network()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    counts = counter.get_flop_counts()["Global"]
    expected = next(count for operator, count in counts.items() if "convolution" in str(operator)) // 2
    exported = copy(model)
    if form != "fp32":
        steps = Preprocessing.of(checkpoint.info, "normalized")
        x = normalize_pixels(images.sample(32, steps.crop), steps)
        exported = (
            precision.to_fp16(exported, x)[0] if form == "fp16" else precision.to_int8(exported, x, runtime.CPU)[0]
        )
    assert macs_per_image(exported) == expected


def test_a_sample_is_used_and_named(
    model: onnx.ModelProto,
    reference: Reference,
    images: ValidationImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = verify_model(model, reference, images, tmp_path)
    assert (everything.images, everything.images_total, everything.sample) == (100, 100, "")
    assert everything.accuracy_margin == 0
    monkeypatch.setattr(budget, "FEWEST_IMAGES", 1)
    monkeypatch.setattr(budget, "FLOAT64_CPU", 30.5 * macs_per_image(model) / budget.WHITE_BOX_SHARE)
    report = verify_model(model, reference, images, tmp_path, training_accuracy=everything.val_accuracy_torch)
    assert report.validated, report.failed_checks
    assert (report.images, report.images_total) == (30, 100)
    assert "in float64 on the CPU" in report.sample
    assert 0 < report.accuracy_margin < 0.2
    (compared,) = [check for check in report.checks if check.name == "validation set"]
    assert "(30 of 100 images)" in compared.result
    drawn, crop = images.stratified(30), Preprocessing.of(reference.info, "normalized").crop
    logits = reference.logits(np.concatenate([pixels for pixels, _ in drawn.batches(crop)]))
    assert report.val_accuracy_torch == pytest.approx((logits.argmax(1) == drawn.labels).mean())
    recorded = ModelMetadata.parse("m.onnx", properties_of(model)).model_copy(update={"validation": report.summary()})
    for total in (96, 100, 104):  # a sample is of all that there are, whether they can be decoded or not
        claimed = report.model_copy(update={"images_total": total})
        result, _ = check_recorded_proof(claimed, recorded, model, everything, len(images))
        assert (f"{total} images, expected 100" in result) == (total != 100)
    far = verify_model(model, reference, images, tmp_path, training_accuracy=0.9)
    assert [check.name for check in far.failed_checks] == ["accuracy as in training"]


def test_a_file_cannot_choose_its_images_and_batches(
    model: onnx.ModelProto,
    reference: Reference,
    images: ValidationImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the shapes of its values, any number of images would seem to fit into time and memory."""
    silent = copy(model)
    del silent.graph.value_info[:]
    seen = list[int]()
    monkeypatch.setattr(proof, "largest_batch", lambda model, *_: seen.append(macs_per_image(model)) or 2)
    report = verify_model(silent, reference, images, tmp_path)
    assert report.validated, report.failed_checks
    assert seen == [macs_per_image(model)]


def test_a_fault_is_refuted_on_a_sample(
    model: onnx.ModelProto, reference: Reference, images: ValidationImages, tmp_path: Path
) -> None:
    faulty = copy(model)
    change(faulty, "fc.weight", lambda w: np.roll(w, 1, 0))
    graph.write(faulty, tmp_path / "m.onnx")
    report = verify_file(tmp_path / "m.onnx", reference, images, ProofThresholds(runtime.CPU, images=20))
    assert (report.images, report.sample) == (20, "as --images asks")
    assert {"validation set", "top-1 agreement"} <= {check.name for check in report.failed_checks}


@pytest.mark.parametrize(("limit", "words"), [("DECODED_PIXELS", "to decode"), ("ONNX_CPU", "in ONNX Runtime")])
def test_each_part_of_the_work_has_its_limit(
    limit: str, words: str, model: onnx.ModelProto, images: ValidationImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = {"DECODED_PIXELS": 47 * 53, "ONNX_CPU": macs_per_image(model)}[limit]
    monkeypatch.setattr(budget, "FEWEST_IMAGES", 1)
    monkeypatch.setattr(budget, limit, 12.5 * cost)
    size = proof_size(model, images, runtime.CPU, torch.device("cpu"))
    assert size.images == 12
    assert words in size.reason
    assert "8 min 0 s" in size.reason  # a minute times 100 / 12.5
    for taken in ("8 min 0 s", "59.9 s", "1300 h 5 min"):
        assert budget.REASON.fullmatch(size.reason.replace("8 min 0 s", taken))
    assert not budget.REASON.fullmatch(size.reason.replace("8 min 0 s", "99.9 percent of ImageNet"))
    assert proof_size(model, images, runtime.CUDA, torch.device("cpu")).images == (12 if "PIXELS" in limit else 100)
    monkeypatch.setattr(budget, "FEWEST_IMAGES", 40)
    assert proof_size(model, images, runtime.CPU, torch.device("cpu")).images == 40


def test_the_recorded_accuracy_of_the_same_sample_is_held_to_the_image(
    model: onnx.ModelProto, images: ValidationImages, tmp_path: Path
) -> None:
    """Of another one by chance: what a file says of its own margin is not asked."""
    thresholds, images = ProofThresholds(runtime.CPU, images=30), replace(images, fingerprint="0")
    graph.write(model, tmp_path / "m.onnx")
    measured = verify_file(tmp_path / "m.onnx", None, images, thresholds)

    def passes(off: float, recorded_images: int) -> bool:
        recorded = copy(model)
        accuracy = measured.val_accuracy_onnx + off
        summary = measured.summary() | {"val_accuracy_onnx": accuracy, "images": recorded_images}
        helper.set_model_props(recorded, properties_of(recorded) | {"validation": json.dumps(summary)})
        graph.write(recorded, tmp_path / "m.onnx")
        report = verify_file(tmp_path / "m.onnx", None, images, thresholds)
        return next(check.passed for check in report.checks if check.name == "accuracy as in metadata")

    assert passes(0, 30)
    assert passes(1 / 30, 30)  # a near tie, on another machine
    assert not passes(2 / 30, 30)
    assert passes(1 / 30, 40)
    assert not passes(0.4, 40)


def test_a_known_graph_needs_fewer_images(model: onnx.ModelProto, images: ValidationImages) -> None:
    many = labeled(np.zeros(1_000_000, np.int64))
    every = ValidationImages(images.encoded, many.rows % 100, many.labels)
    sizes = [proof_size(model, every, runtime.CPU, torch.device("cpu"), known).images for known in (False, True)]
    assert sizes[0] == pytest.approx(6 * sizes[1], rel=1e-3)
    assert proof_size(model, images, runtime.CPU, torch.device("cpu"), True).images == len(images) == 100


@pytest.mark.parametrize("accuracy", [0.0, 0.02, 0.5, 0.93, 1.0])
def test_the_margin_covers_the_accuracy_of_all_images_19_times_in_20(accuracy: float) -> None:
    rng = np.random.default_rng(0)
    total, images = 1000, 120
    right = rng.permutation(total) < accuracy * total
    covered = 0
    for _ in range(400):
        measured = rng.choice(right, images, replace=False).mean()
        covered += abs(measured - accuracy) <= sampling_margin(float(measured), images, total) + 1e-12
    assert covered >= 0.92 * 400
    assert sampling_margin(accuracy, total, total) == 0


def test_an_export_says_that_it_used_a_sample_and_is_validated_on_all(
    cli: Callable[..., Ended], trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.onnx"
    with monkeypatch.context() as patched:
        patched.setattr(budget, "FLOAT64_CPU", 2e7)
        ended = cli("export", trained.run.path, "--onnx", "--out", file, "--json")
    assert ended.code == 0, ended.err
    used = ended.json["images"]
    assert 1 < used < ended.json["images_total"] == 359
    assert f"Verified on a stratified sample: {used} of 359 images, all would take about" in ended.err
    assert "± " in ended.err
    assert ended.json["accuracy_margin"] > 0
    everything = cli("validate", file, "--json", "--checkpoint", trained.run.path)
    assert everything.code == 0, everything.err
    assert everything.json["images"] == everything.json["images_total"] == 359
    assert "accuracy as in metadata" in [check["name"] for check in everything.json["checks"]]
    source = open_source("digits")
    labels = select_images(source, "val", source.record.class_names).stratified(used).labels
    assert np.ptp(np.bincount(labels, minlength=10)) <= 3  # of each digit about as many
