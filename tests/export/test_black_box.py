"""Faults that show on few images, or in few sizes of batches, are found by the probe that is meant for them."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from resnet_ops.data.opening import open_source
from resnet_ops.export import checks, graph, precision, runtime
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import ValidationImages, select_images
from resnet_ops.export.job import export_onnx
from resnet_ops.export.metadata import ModelMetadata, QuantizationError
from resnet_ops.export.precision import QuantizationCandidate
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import INT8, Tolerances, is_improbable, rounding_flips, tolerances_of
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.training.job import TrainResult
from tests.export.faults import (
    BATCH_FAULTS,
    CHANNEL_FAULTS,
    RAW_FAULTS,
    WHITE_BOX_FAULTS,
    WHITE_BOX_INT8_FAULTS,
    channel_of_int8,
    cooled_logits,
    dequantized_but_one,
)
from tests.export.samples import (
    RGB,
    InMemoryImages,
    change,
    copy,
    make_checkpoint,
    make_images,
    make_model,
    metadata_of,
    properties_of,
    verify_model,
)

FAULTS = RAW_FAULTS | BATCH_FAULTS
# A file that no checkpoint is known of can only be asked whether it contradicts itself.
CONTRADICTIONS = [
    "NaN on black",
    "squashed by nearest neighbor beside a decoy",
    "wrong on photos",
    "classes rolled in batches of 8 to 63",
    "a random operator",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("c") / "c.safetensors", "resnet8", stored=33)


@pytest.fixture(scope="module")
def sound(small: Checkpoint) -> dict[bool, onnx.ModelProto]:
    """The network's file for floats, and for raw pixels."""
    return {raw: make_model(small, raw=raw) for raw in (False, True)}


def failed_checks(
    name: str, sound: dict[bool, onnx.ModelProto], reference: Reference | None, folder: Path
) -> list[str]:
    faulty = copy(sound[name in RAW_FAULTS])
    FAULTS[name][0](faulty)
    report = verify_model(faulty, reference, make_images((47, 53), count=12), folder, black_box=True)
    return [check.name for check in report.failed_checks]


def test_no_batch_is_larger_than_fits_into_memory(
    sound: dict[bool, onnx.ModelProto], small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes, run = sound[False], set[int](), Classifier.run
    crop = ModelMetadata.parse("m.onnx", properties_of(model)).preprocessing.crop
    image_bytes = precision.activation_bytes_per_image(graph.with_inferred_shapes(model)) + 8 * int(np.prod(crop.shape))
    monkeypatch.setattr(checks, "free_bytes", lambda _: 4 * 6 * image_bytes)
    monkeypatch.setattr(Classifier, "run", lambda self, x: sizes.add(len(x)) or run(self, x))
    report = verify_model(model, Reference(small), make_images((47, 53)), tmp_path)
    assert report.validated, report.failed_checks
    (batches,) = (check.result for check in report.checks if check.name == "batch sizes")
    assert batches.endswith("in batches of 1 to 6; larger ones do not fit into the memory here")
    assert (max(sizes), report.largest_batch) == (6, 4)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_on_few_images_is_found(
    name: str, small: Checkpoint, sound: dict[bool, onnx.ModelProto], tmp_path: Path
) -> None:
    failed = failed_checks(name, sound, Reference(small), tmp_path)
    assert FAULTS[name][1] in failed
    assert "validation set" not in failed or name in BATCH_FAULTS


@pytest.mark.parametrize("name", WHITE_BOX_FAULTS)
def test_a_fault_that_no_probe_meets_is_found_by_comparing_the_graph(
    name: str, small: Checkpoint, sound: dict[bool, onnx.ModelProto], tmp_path: Path
) -> None:
    plant, check = WHITE_BOX_FAULTS[name]
    faulty = copy(sound[True])
    plant(faulty)
    report = verify_model(faulty, Reference(small), make_images((47, 53), count=12), tmp_path)
    assert check in [failed.name for failed in report.failed_checks]


@pytest.mark.parametrize("name", WHITE_BOX_INT8_FAULTS)
def test_a_fault_of_any_int8_channel_is_found_by_comparing_the_weights(
    name: str, int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    plant, check = WHITE_BOX_INT8_FAULTS[name]
    faulty = copy(int8_model)
    plant(faulty)
    report = verify_model(faulty, Reference(digit_checkpoint), digits.stratified(100), tmp_path)
    assert check in [failed.name for failed in report.failed_checks]


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_found_without_its_checkpoint(
    name: str, sound: dict[bool, onnx.ModelProto], tmp_path: Path
) -> None:
    assert FAULTS[name][1] in failed_checks(name, sound, None, tmp_path)


def jpeg(image: np.ndarray, orientation: int = 1) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def rotated_png(image: np.ndarray) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(image).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "encode"),
    [
        ((47, 53), jpeg),
        ((47, 53), rotated_png),
        ((60, 41), lambda image: jpeg(image, 8)),
        ((130, 41), rotated_png),  # of which Pillow resizes the rows first
        ((150, 170), jpeg),
        ((300, 340), jpeg),
    ],
)
def test_stored_bytes_give_the_same_answers_decoded_whole_or_as_in_training(
    size: tuple[int, int],
    encode: Callable[[np.ndarray], bytes],
    small: Checkpoint,
    sound: dict[bool, onnx.ModelProto],
    tmp_path: Path,
) -> None:
    images = make_images(size, count=8)
    stored = InMemoryImages([], images.labels)
    stored.stored = [encode(image) for image in images.at_original_size(8, RGB)]
    encoded = ValidationImages(stored, images.rows, images.labels)
    report = verify_model(sound[True], Reference(small), encoded, tmp_path)
    assert report.validated, report.failed_checks
    assert "stored images" in [check.name for check in report.checks]
    alone = verify_model(sound[True], None, encoded, tmp_path)
    assert alone.validated, alone.failed_checks


@pytest.fixture(scope="module")
def digits() -> ValidationImages:
    source = open_source("digits")
    return select_images(source, "val", source.record.class_names)


@pytest.fixture(scope="module")
def digit_checkpoint(trained: TrainResult) -> Checkpoint:
    return checkpoints.read_best(trained.run)[0]


@pytest.fixture(scope="module")
def digit_file(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The digits' network in fp32, with its proof."""
    out = tmp_path_factory.mktemp("fp32") / "m.onnx"
    export_onnx(ExportConfig(run=str(trained.run.path), out=out))
    return onnx.load(out)


@pytest.fixture(scope="module")
def int8_model(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The digits' network in int8, with its proof."""
    out = tmp_path_factory.mktemp("int8") / "m.onnx"
    exported = export_onnx(ExportConfig(run=str(trained.run.path), precision="int8", out=out))
    assert exported.validated, exported.failed_checks
    return onnx.load(out)


def test_int8_is_held_to_twice_its_own_error(
    int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    sound = verify_model(int8_model, Reference(digit_checkpoint), digits, tmp_path, precision="int8")
    assert sound.validated, sound.failed_checks
    assert 0 < sound.tolerance < INT8.largest
    noisy = copy(int8_model)
    rng = np.random.default_rng(0)
    for tensor in int8_model.graph.initializer:
        if tensor.name.endswith("conv2.weight_quantized"):
            change(noisy, tensor.name, lambda w: (w + rng.integers(-5, 6, w.shape)).clip(-64, 64).astype(np.int8))
    refuted = {check.name for check in verify_model(noisy, Reference(digit_checkpoint), digits, tmp_path).failed_checks}
    assert "mean difference" in refuted


@pytest.mark.parametrize("factor", CHANNEL_FAULTS.values(), ids=CHANNEL_FAULTS)
def test_most_faults_of_one_int8_channel_show_in_outputs(
    factor: int, int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    """The others are found by the comparison of the weights."""
    found, reference = 0, Reference(digit_checkpoint)
    for channel in range(5):
        faulty = copy(int8_model)
        channel_of_int8("layer1.0.conv2.weight", channel, factor)(faulty)
        found += not verify_model(faulty, reference, digits.stratified(100), tmp_path).validated
    assert found >= 3


def test_a_forged_error_gains_nothing_beyond_the_limits_for_all(small: Checkpoint) -> None:
    def limits(**error: float) -> Tolerances:
        measured = QuantizationError.model_validate({"mean": 1, "largest": 9, "agreement": 0, "images": 1} | error)
        return tolerances_of(metadata_of(small, precision="int8"), runtime.CPU, measured=measured)

    assert limits() == INT8 == tolerances_of(metadata_of(small, precision="int8"), runtime.CPU)
    assert limits(mean=0.004).mean == 0.008
    assert limits(largest=0.04).largest == 0.16
    # None of 512 images flipped: up to 3 of 512 may, with 95% confidence.
    assert limits(agreement=1, images=512).agreement == 1 - 3 / 512


def test_a_file_is_not_run_on_images_of_a_size_that_it_makes_up(
    small: Checkpoint, sound: dict[bool, onnx.ModelProto], tmp_path: Path
) -> None:
    steps = metadata_of(small).preprocessing.model_copy(update={"resize": (64, 64), "height": 64, "width": 64})
    lying = copy(sound[False])
    graph.set_metadata(lying, metadata_of(small, preprocessing=steps))
    for reference, black_box in ((Reference(small), False), (None, True)):
        report = verify_model(lying, reference, None, tmp_path, black_box=black_box)
        assert report.checks[-1].name == "structure"
        assert "3 x 64 x 64" in report.checks[-1].result


def test_an_activation_that_is_clipped_is_refuted_whatever_the_file_says_of_its_error(
    int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    faulty = copy(int8_model)
    error = QuantizationError(mean=0.01, largest=0.0625, agreement=0.985, images=512)
    metadata = ModelMetadata.parse("m.onnx", properties_of(faulty)).model_copy(update={"quantization_error": error})
    graph.set_metadata(faulty, metadata)
    change(faulty, "relu_3_scale", lambda s: s / 2)
    reader = next(n for n in faulty.graph.node if n.input[0] == "relu_3_DequantizeLinear_Output")
    bias = reader.input[2].removesuffix("_DequantizeLinear_Output")
    change(faulty, f"{bias}_quantized_scale", lambda s: s / 2)
    change(faulty, f"{bias}_quantized", lambda b: b * 2)
    report = verify_model(faulty, Reference(digit_checkpoint), digits, tmp_path)
    assert "activation ranges" in [check.name for check in report.failed_checks]


def test_an_error_that_is_made_up_is_refuted(
    int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    metadata = ModelMetadata.parse("m.onnx", properties_of(int8_model))
    recorded = metadata.quantization_error
    assert recorded is not None
    for factor in (0.2, 5):
        faulty = copy(int8_model)
        error = recorded.model_copy(update={"mean": recorded.mean * factor})
        graph.set_metadata(faulty, metadata.model_copy(update={"quantization_error": error}))
        failed = [c.name for c in verify_model(faulty, Reference(digit_checkpoint), digits, tmp_path).failed_checks]
        assert failed == ["quantization error"]


def test_of_similar_quantizations_the_one_that_agrees_most_is_selected() -> None:
    methods = (("minmax", 0.0040, 0.98), ("entropy", 0.0041, 1.0), ("percentile", 0.0080, 1.0))
    candidates = [
        QuantizationCandidate(name, "u8s8", agreement, error, 1, 9, 100) for name, error, agreement in methods
    ]
    assert precision._select(candidates).method == "entropy"


def test_images_to_probe_with_are_of_all_classes() -> None:
    """Datasets are sorted by class; a fifth of these images are damaged."""
    labels = np.repeat(np.arange(10), 20)
    images = InMemoryImages([np.full((1, 1, 3), label, np.uint8) for label in labels], labels)
    images.stored[::5] = [b""] * 40
    chosen = ValidationImages(images, np.arange(200), labels)
    for count in (16, 30):
        pixels = chosen.sample(count, RGB)
        assert pixels.shape == (count, 1, 1, 3)
        assert len(np.unique(pixels)) == 10
    few = ValidationImages(images, np.arange(1, 3), labels[1:3])
    assert few.sample(16, RGB).shape == (16, 1, 1, 3)


def test_one_quantized_convolution_is_not_int8(
    int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    faulty = copy(int8_model)
    dequantized_but_one(faulty)
    refuted = {
        c.name: c.result for c in verify_model(faulty, Reference(digit_checkpoint), digits, tmp_path).failed_checks
    }
    assert "6 convolutions are not in int8" in refuted["file"]


def test_another_precision_than_asked_for_is_refuted(
    small: Checkpoint, sound: dict[bool, onnx.ModelProto], tmp_path: Path
) -> None:
    (refuted,) = verify_model(sound[False], Reference(small), None, tmp_path, precision="int8").failed_checks
    assert (refuted.name, refuted.result) == ("file", "precision fp32, expected int8")


def test_a_class_that_is_lost_is_refuted_though_most_images_agree(
    int8_model: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    """Four images of one class of ten in 359 are 1%: within the limit for all."""
    threes = np.flatnonzero(digits.labels == 3)[:4]
    chosen = np.sort(np.concatenate([np.flatnonzero(digits.labels != 3), threes]))
    few = ValidationImages(digits.encoded, digits.rows[chosen], digits.labels[chosen])
    faulty = copy(int8_model)
    bias = next(t.name for t in faulty.graph.initializer if t.name.startswith("fc.bias"))
    change(faulty, bias, lambda b: b - (np.arange(b.size) == 3) * (np.abs(b).max() * 100).astype(b.dtype))
    refuted = {c.name: c.result for c in verify_model(faulty, Reference(digit_checkpoint), few, tmp_path).failed_checks}
    assert "agreement by class" in refuted


@pytest.mark.parametrize(("flips", "images", "passes"), [(1, 1, True), (2, 2, True), (4, 4, False), (3, 40, True)])
def test_few_images_of_a_class_are_not_held_against_a_file(flips: int, images: int, passes: bool) -> None:
    assert is_improbable(flips, images, 0.03, 10) != passes


def test_cooled_logits_are_found_without_the_checkpoint(
    digit_file: onnx.ModelProto, digits: ValidationImages, tmp_path: Path
) -> None:
    """All answers are the same; that they are five times less sure is only seen in the calibration."""
    cooled = copy(digit_file)
    cooled_logits(cooled)
    report = verify_model(cooled, None, digits, tmp_path)
    assert [check.name for check in report.failed_checks] == ["calibration as in metadata"]


def test_near_ties_in_the_precision_of_the_training_are_not_held_against_a_network(
    digit_file: onnx.ModelProto, digit_checkpoint: Checkpoint, digits: ValidationImages, tmp_path: Path
) -> None:
    """Of 30 images one flip is 3%: of images that are near ties it passes, of others, or after fp32, it does not."""
    reference, crop = Reference(digit_checkpoint), metadata_of(digit_checkpoint).preprocessing.crop
    logits = np.concatenate([reference.logits(pixels) for pixels, _ in digits.batches(crop)])
    order = np.argsort(np.diff(np.sort(logits, 1)[:, -2:], axis=1)[:, 0])

    def passes(rows: np.ndarray, off: int, trained_in: str | None = None) -> bool:
        info = digit_checkpoint.info.model_copy(update={"precision": trained_in})
        few = ValidationImages(digits.encoded, digits.rows[rows], digits.labels[rows])
        accuracy = float((logits[rows].argmax(1) == few.labels).mean())
        report = verify_model(
            digit_file, Reference(replace(digit_checkpoint, info=info)), few, tmp_path,
            training_accuracy=accuracy - off / len(rows),
        )  # fmt: skip
        return next(check.passed for check in report.checks if check.name == "accuracy as in training")

    assert passes(order[:30], 0)
    assert passes(order[:30], 1)
    assert not passes(order[:30], 12)
    assert passes(order[-30:], 0)
    assert not passes(order[-30:], 1)
    assert passes(order[:30], 1, "bf16")
    assert passes(order[:30], 0, "fp32")
    assert not passes(order[:30], 1, "fp32")


@pytest.mark.parametrize(("near_ties", "flips"), [(0, 0), (1, 1), (4, 4), (9, 6), (100, 20)])
def test_of_many_near_ties_few_change_the_accuracy(near_ties: int, flips: int) -> None:
    assert rounding_flips(near_ties) == flips
