"""`diagnose` names the fault of a program: each is planted in a program of its own, in Pillow, OpenCV and numpy."""

import csv
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image, ImageOps

from resnet_ops.data.folders import FolderImages
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import answer_table, fault_search, runtime
from resnet_ops.export.answers import Answers, read_answers
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import DiagnoseConfig
from resnet_ops.export.diagnosis import DiagnoseResult, common_name, diagnose_with
from resnet_ops.export.fault_match import FaultMatch
from resnet_ops.export.faults import input_faults
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.program_steps import Fault, Kind
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles, Ended
from tests.export.diagnosis_samples import (
    MEAN,
    NAMES,
    SIDE,
    STD,
    STORED,
    bilinear,
    chw,
    crop,
    fit,
    normalize,
    upright,
    write_model,
    write_photos,
)
from tests.json_keys import assert_keys

Cli = Callable[..., Ended]
Program = Callable[[Path], np.ndarray]


def right(path: Path) -> np.ndarray:
    return chw(normalize(fit(upright(path))))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@dataclass(frozen=True)
class World:
    """Images, and networks that were made for them."""

    folder: Path
    paths: list[Path]
    rgb: Classifier
    raw: Classifier
    files: Path

    def logits(self, program: Program, paths: Sequence[Path] = ()) -> np.ndarray:
        """What a program gets from ONNX Runtime, image by image."""
        session = ort.InferenceSession(self.files / "rgb.onnx", providers=["CPUExecutionProvider"])
        inputs = [np.ascontiguousarray(program(path)[None], np.float32) for path in paths or self.paths]
        return np.concatenate([session.run(None, {"images": x})[0] for x in inputs])

    def write(self, rows: Sequence[Sequence[object]], header: Sequence[str] | None, name: str = "mine.csv") -> Path:
        with (self.files / name).open("w", newline="") as file:
            csv.writer(file).writerows([*([header] if header else []), *rows])
        return self.files / name

    def write_values(self, values: np.ndarray) -> Path:
        rows = [(path, *row) for path, row in zip(self.paths, values.tolist(), strict=True)]
        return self.write(rows, ("path", *NAMES))

    def write_classes(self, classes: Sequence[object]) -> Path:
        return self.write(list(zip(self.paths, classes, strict=True)), ("path", "class"))

    def diagnose(self, outputs: Path, classifier: Classifier | None = None) -> DiagnoseResult:
        config = DiagnoseConfig.of(file=self.files / "rgb.onnx", outputs=outputs, data=str(self.folder))
        return diagnose_with(classifier or self.rgb, config, lambda _: None, 0.0)


def load(file: Path) -> Classifier:
    """Load a file on one thread: two would wait for each other most of the time, for networks as small as these."""
    session = runtime.create_session(file, runtime.CPU, threads=1)
    return Classifier.from_session(ModelMetadata.parse(file.name, session.metadata), session)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    files = tmp_path_factory.mktemp("world")
    paths = write_photos(files / "val")
    x = np.stack([right(path) for path in paths])
    rgb, raw = files / "rgb.onnx", files / "raw.onnx"
    write_model(rgb, x, raw)
    return World(files / "val", paths, load(rgb), load(raw), files)


# Programs, each with one fault


def pillow_of(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array))


def with_cv2(flag: int) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    return lambda image, size: pillow_of(cv2.resize(np.asarray(image), size, interpolation=flag))


def with_pillow(resampling: Image.Resampling) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    return lambda image, size: image.resize(size, resampling)


def letterbox(path: Path, color: int) -> np.ndarray:
    image = np.asarray(upright(path))
    scale = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = np.asarray(bilinear(pillow_of(image), (width, height)))
    top, left = (SIDE - height) / 2, (SIDE - width) / 2
    edges = round(top - 0.1), round(top + 0.1), round(left - 0.1), round(left + 0.1)  # as YOLO's letterbox
    return chw(normalize(cv2.copyMakeBorder(small, *edges, cv2.BORDER_CONSTANT, value=(color, color, color))))


def composited(path: Path, color: str) -> np.ndarray:
    image = Image.open(path)
    if image.mode == "RGBA":
        background = Image.new("RGB", image.size, color)
        background.paste(image, mask=image.getchannel("A"))
        return chw(normalize(fit(background)))
    return right(path)


def of_palette(path: Path) -> np.ndarray:
    image = Image.open(path)
    return chw(normalize(fit(pillow_of(np.dstack([np.asarray(image)] * 3))))) if image.mode == "P" else right(path)


def turned(path: Path) -> np.ndarray:
    return chw(normalize(fit(Image.open(path).convert("RGB"))))


def scaled(path: Path) -> np.ndarray:
    """Pixels (H, W, C) from 0 to 255, in float."""
    return np.asarray(fit(upright(path))).astype(np.float64)


def bgr(path: Path) -> np.ndarray:
    return chw(normalize(fit(pillow_of(cv2.imread(str(path))))))


def opencv(path: Path) -> np.ndarray:
    """What most programs of OpenCV do."""
    return chw(cv2.resize(cv2.imread(str(path)), (SIDE, SIDE)) / 255)


IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FAULTS: dict[str, Program] = {
    "BGR": bgr,
    "grey instead of RGB": lambda p: chw(normalize(np.dstack([np.asarray(fit(upright(p, "L")))] * 3))),
    "inverted": lambda p: chw(normalize(255 - np.asarray(fit(upright(p))))),
    "mean and std not applied": lambda p: chw(scaled(p) / 255),
    "not divided by 255": lambda p: chw((scaled(p) - MEAN) / STD),
    "no normalization, 0 to 255": lambda p: chw(scaled(p)),
    "mean and std of ImageNet": lambda p: chw((scaled(p) / 255 - IMAGENET[0]) / IMAGENET[1]),
    "mean and std 0.5, -1 to 1": lambda p: chw(scaled(p) / 127.5 - 1),
    "divided by 255 twice": lambda p: chw(normalize(scaled(p) / 255)),
    "std not applied": lambda p: chw(scaled(p) / 255 - MEAN),
    "mean not applied": lambda p: chw(scaled(p) / 255 / STD),
    "mean and std swapped": lambda p: chw((scaled(p) / 255 - STD) / MEAN),
    "multiplied by std": lambda p: chw((scaled(p) / 255 - MEAN) * STD),
    "mean added": lambda p: chw((scaled(p) / 255 + MEAN) / STD),
    "mean subtracted in uint8, which wraps around": lambda p: chw(
        (np.asarray(fit(upright(p))) - np.uint8(np.round(MEAN * 255))) / (STD * 255)
    ),
    "pixels as signed bytes, -128 to 127": lambda p: chw(normalize(np.asarray(fit(upright(p))).astype(np.int8))),
    "each image normalized by its own mean and std": lambda p: chw((scaled(p) - scaled(p).mean()) / scaled(p).std()),
    "each image stretched to 0 to 1": lambda p: chw(cv2.normalize(scaled(p), None, 0, 1, cv2.NORM_MINMAX)),
    "mean and std in BGR order": lambda p: chw((scaled(p) / 255 - MEAN[::-1]) / STD[::-1]),
    "one std for all channels, as cv2.dnn.blobFromImage": lambda p: cv2.dnn.blobFromImage(
        np.asarray(fit(upright(p))), 1 / 255 / STD.mean(), mean=tuple(MEAN * 255)
    )[0],
    "mean of ImageNet subtracted, 0 to 255, as in Caffe": lambda p: chw(scaled(p) - (123.68, 116.779, 103.939)),
    "reshaped to (C, H, W) instead of transposed": lambda p: normalize(fit(upright(p))).reshape(3, SIDE, SIDE),
    "channels reversed after the normalization": lambda p: right(p)[::-1],
    "height and width exchanged": lambda p: normalize(fit(upright(p))).transpose(2, 1, 0),
    "upside down": lambda p: chw(cv2.flip(normalize(fit(upright(p))), 0)),
    "mirrored": lambda p: chw(normalize(ImageOps.mirror(fit(upright(p))))),
    "EXIF orientation ignored": turned,
    "transparency composited on white": lambda p: composited(p, "white"),
    "transparency composited on black": lambda p: composited(p, "black"),
    "indices of the palette taken for pixels": of_palette,
    f"squashed to {SIDE}x{SIDE}": lambda p: chw(normalize(bilinear(upright(p), (SIDE, SIDE)))),
    f"resized to cover {SIDE}x{SIDE} instead of {STORED}": lambda p: chw(normalize(fit(upright(p), SIDE))),
    f"resized to cover 18 instead of {STORED}": lambda p: chw(normalize(fit(upright(p), 18))),
    f"squashed to {STORED}x{STORED}, then cropped": lambda p: chw(
        normalize(crop(bilinear(upright(p), (STORED, STORED))))
    ),
    "cropped at the top left instead of the center": lambda p: chw(normalize(fit(upright(p), top_left=True))),
    "letterboxed on grey": lambda p: letterbox(p, 114),
    "letterboxed on black": lambda p: letterbox(p, 0),
    f"{SIDE}x{SIDE} cropped without resizing": lambda p: chw(normalize(centered(upright(p)))),
    "bilinear without antialiasing (cv2.resize)": lambda p: chw(
        normalize(fit(upright(p), resize=with_cv2(cv2.INTER_LINEAR)))
    ),
    "nearest neighbor (cv2.INTER_NEAREST)": lambda p: chw(
        normalize(fit(upright(p), resize=with_cv2(cv2.INTER_NEAREST)))
    ),
    "nearest neighbor (Pillow)": lambda p: chw(
        normalize(fit(upright(p), resize=with_pillow(Image.Resampling.NEAREST)))
    ),
    "bicubic (Pillow)": lambda p: chw(normalize(fit(upright(p), resize=with_pillow(Image.Resampling.BICUBIC)))),
    "bicubic without antialiasing (cv2.INTER_CUBIC)": lambda p: chw(
        normalize(fit(upright(p), resize=with_cv2(cv2.INTER_CUBIC)))
    ),
    "area (cv2.INTER_AREA)": lambda p: chw(normalize(fit(upright(p), resize=with_cv2(cv2.INTER_AREA)))),
    "Lanczos (Pillow)": lambda p: chw(normalize(fit(upright(p), resize=with_pillow(Image.Resampling.LANCZOS)))),
    f"squashed to {SIDE}x{SIDE}, bilinear without antialiasing (cv2.resize)": lambda p: chw(
        normalize(cv2.resize(np.asarray(upright(p)), (SIDE, SIDE)))
    ),
}


def centered(image: Image.Image) -> Image.Image:
    left, top = (round((length - SIDE) / 2) for length in image.size)
    return image.crop((left, top, left + SIDE, top + SIDE))


# Each takes half a second. Some of all kinds are checked each time, the others by `make test-slow`.
CHECKED = [
    pytest.param(*fault, id=fault[0], marks=[pytest.mark.slow] if index % 3 else [])
    for index, fault in enumerate(FAULTS.items())
]


@pytest.mark.parametrize(("fault", "program"), CHECKED)
def test_each_fault_is_named(world: World, fault: str, program: Program) -> None:
    kind = "probabilities" if "crop" in fault or "squash" in fault or "transp" in fault else "logits"
    logits = world.logits(program)
    result = world.diagnose(world.write_values(softmax(logits) if kind == "probabilities" else logits))
    assert result.verdict == "explained", result
    assert result.best.faults == (fault,)
    assert result.ties == ()
    assert result.kind == kind
    assert result.best.equal >= 26  # near ties turn with the rounding of a pixel
    assert result.best.remedies[0]


@pytest.mark.parametrize("fault", ["BGR", f"squashed to {SIDE}x{SIDE}"])
def test_classes_alone_are_enough_for_coarse_faults(world: World, fault: str) -> None:
    classes = world.logits(FAULTS[fault]).argmax(1)
    result = world.diagnose(world.write_classes([NAMES[label] for label in classes]))
    assert result.verdict == "explained"
    assert (fault,) in [one.faults for one in (result.best, *result.ties)]
    assert result.best.max_diff is None
    assert result.best.equal == 30 > result.ours.equal
    assert 0 < result.telling <= 30 - result.ours.equal
    explaining = [one.faults for one in result.hypotheses if one.explains]
    assert explaining == [one.faults for one in (result.best, *result.ties)][: len(explaining)]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("EXIF orientation ignored", "too few answers differ"),  # that of the 3 photos
        ("mean and std not applied", "the same class"),  # which eight others give, too
    ],
)
def test_no_fault_is_named_for_classes_that_match_by_chance(world: World, cli: Cli, fault: str, why: str) -> None:
    outputs = world.write_classes(world.logits(FAULTS[fault]).argmax(1).tolist())
    ended = cli("diagnose", world.files / "rgb.onnx", "--outputs", outputs, "--data", world.folder)
    assert ended.code == 1
    assert "Explained" not in ended.out
    assert "explains" not in ended.out
    possible = " ".join(ended.out.partition("Possible:")[2].split())
    assert fault in possible
    assert why in ended.err
    assert "Give probabilities" in ended.err


def test_equal_classes_are_no_proof_of_the_preprocessing(world: World, cli: Cli) -> None:
    outputs = world.write_classes(world.logits(right).argmax(1).tolist())
    ended = cli("diagnose", world.files / "rgb.onnx", "--outputs", outputs, "--data", world.folder)
    assert ended.code == 0
    assert "no difference seen in 30 classes" in ended.out
    assert "as the file says" not in ended.out


def test_the_simplest_of_equal_explanations_comes_first(world: World) -> None:
    """Classes that a resize with any filter gives: what the resizes have in common is named."""
    steps = world.rgb.metadata
    resizes = [fault for fault in input_faults(steps) if fault.geometry == f"squashed to {SIDE}x{SIDE}"]
    names = [fault.name for fault in resizes]
    assert names[0] == resizes[0].geometry
    z = np.eye(6)[[0, 1, 2, 3, 4, 5] * 5]
    answered = Answers("classes", np.arange(30), np.arange(30), z.argmax(1), None, ())
    ours = FaultMatch((), z[::-1], answered)
    exact = [FaultMatch((fault,), z * (9 - place), answered, (place,)) for place, fault in enumerate(resizes)]
    unsure = FaultMatch((resizes[0],), z * 0.5, answered, (0,))  # farther, but without another filter
    best, *ties = sorted([*exact[:0:-1], unsure], key=lambda match: match.rank)
    assert best is unsure
    assert all(match.explains(ours) and match.ties(best) for match in ties)
    assert [match.faults[0].name for match in ties] == names[1:]
    assert common_name(best, ties) == f"squashed to {SIDE}x{SIDE}; which filter cannot be told"
    assert common_name(best, []) == names[0]


def test_usual_margins_are_among_the_faults(world: World) -> None:
    """Those of timm and torchvision, at 224: 0.95, 0.9, 0.875."""
    steps = world.rgb.metadata.preprocessing.model_copy(update={"height": 224, "width": 224, "resize": (232, 232)})
    names = {fault.name for fault in input_faults(world.rgb.metadata.model_copy(update={"preprocessing": steps}))}
    for side in (235, 248, 256):
        assert f"resized to cover {side} instead of 232" in names
        assert f"resized to cover {side} instead of 232, bicubic (Pillow)" in names
    assert not any("cover 232" in name for name in names)


OUTPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax applied twice": lambda z: softmax(softmax(z)),
    "sigmoid instead of softmax": lambda z: 1 / (1 + np.exp(-z)),
    "class numbers one too high": lambda z: np.roll(softmax(z), 1, 1),
    "each answer is that of the image before": lambda z: np.roll(softmax(z), 1, 0),
    "each answer is that of the next image": lambda z: np.roll(softmax(z), -1, 0),
}


@pytest.mark.parametrize(("fault", "change"), OUTPUTS.items(), ids=OUTPUTS)
def test_faults_after_the_network_are_named(
    world: World, fault: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    result = world.diagnose(world.write_values(change(world.logits(right))))
    assert result.verdict == "explained"
    assert result.best.faults == (fault,)
    assert result.best.compared == 30 - fault.startswith("each")  # which image was before the first is not known


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("class names in alphabetical order", lambda label: sorted(NAMES)[label]),
        ("class names sorted without regard to case", lambda label: sorted(NAMES, key=str.lower)[label]),
        ("class names in natural order, 9 before 10", lambda label: ("ant", "Bee", "cow", "k2", "k9", "k10")[label]),
        ("class names in reverse order", lambda label: NAMES[::-1][label]),
        ("class numbers one too high", lambda label: label + 1),
        ("class numbers one too low", lambda label: label - 1),
    ],
)
def test_faults_in_the_list_of_classes_are_named(world: World, fault: str, answer: Callable[[int], object]) -> None:
    classes = world.logits(right).argmax(1)
    assert len(set(classes)) == len(NAMES)
    result = world.diagnose(world.write_classes([answer(int(label)) for label in classes]))
    assert result.verdict == "explained"
    assert result.best.faults == (fault,)
    assert result.ties == ()


RAW_FAULTS: dict[str, Program] = {
    "BGR": lambda p: cv2.imread(str(p)),
    "inverted": lambda p: 255 - np.asarray(upright(p)),
    "normalized before to -1 to 1": lambda p: (np.asarray(upright(p)) / 127.5 - 1).astype(np.int8).view(np.uint8),
    "height and width exchanged": lambda p: np.asarray(upright(p)).transpose(1, 0, 2),
    "EXIF orientation ignored": lambda p: np.asarray(Image.open(p).convert("RGB")),
    f"squashed to {SIDE}x{SIDE}, before the file does": lambda p: np.asarray(bilinear(upright(p), (SIDE, SIDE))),
    f"squashed to {SIDE}x{SIDE}, bilinear without antialiasing (cv2.resize), before the file does": lambda p: (
        cv2.resize(np.asarray(upright(p)), (SIDE, SIDE))
    ),
}


def raw_logits(world: World, program: Program) -> np.ndarray:
    session = ort.InferenceSession(world.files / "raw.onnx", providers=["CPUExecutionProvider"])
    inputs = [np.ascontiguousarray(program(path)[None]) for path in world.paths]
    return np.concatenate([session.run(None, {"images": x})[0] for x in inputs])


@pytest.mark.parametrize(("fault", "program"), RAW_FAULTS.items(), ids=RAW_FAULTS)
def test_faults_with_raw_files_are_named(world: World, fault: str, program: Program) -> None:
    result = world.diagnose(world.write_values(raw_logits(world, program)), world.raw)
    assert result.verdict == "explained", result
    assert result.best.faults == (fault,)


def test_the_right_program_is_equal(world: World) -> None:
    logits = world.logits(right)
    for outputs in (world.write_values(logits), world.write_values(softmax(logits).astype(np.float16))):
        result = world.diagnose(outputs)
        assert result.verdict == "equal"
        assert result.best.faults == ()
        assert result.best.max_diff < 2e-3
    raw = world.diagnose(world.write_values(raw_logits(world, lambda p: np.asarray(upright(p)))), world.raw)
    assert raw.verdict == "equal"
    assert world.diagnose(world.write_classes(logits.argmax(1).tolist())).verdict == "equal"


def test_several_faults_at_once_are_named(world: World) -> None:
    with_softmax = world.diagnose(world.write_values(softmax(softmax(world.logits(bgr)))))
    assert set(with_softmax.best.faults) == {"BGR", "softmax applied twice"}
    three = world.diagnose(world.write_values(world.logits(opencv)))
    assert set(three.best.faults) == {
        "BGR",
        "mean and std not applied",
        f"squashed to {SIDE}x{SIDE}, bilinear without antialiasing (cv2.resize)",
    }
    assert len(three.best.remedies) == 3


def test_answers_that_nothing_explains_are_shown(world: World, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_search, "MOST_FAULTS", 2)  # the third at once takes most of the time

    def scrambled(path: Path) -> np.ndarray:
        x = right(path)
        return np.random.default_rng(5).permutation(x.ravel()).reshape(x.shape)

    outputs = world.write_values(world.logits(scrambled))
    asked = ("--outputs", outputs, "--data", world.folder, "--images", 12)
    ended = cli("diagnose", world.files / "rgb.onnx", *asked, "--json")
    assert ended.code == 1, ended.err
    assert "No fault explains the answers" in ended.err
    result = ended.json
    assert_keys("diagnose", result)
    assert result["verdict"] == "unexplained"
    assert result["ties"] == []
    assert len(result["differing"]) == 5
    assert result["differing"][0]["difference"] > 0.02
    shown = result["hypotheses"]
    assert [one["faults"] for one in shown].count([]) == 1  # our own preprocessing, to compare with
    nearest = min(one["mean_diff"] for one in shown if len(one["faults"]) < 2)
    assert all(one["mean_diff"] * 2 <= nearest for one in shown if len(one["faults"]) > 1)  # others fit by chance
    assert not any(one["explains"] for one in shown)


FLAT = softmax(np.random.default_rng(0).normal(0, 0.03, (40, 6)))  # of a network that has hardly learned anything
WRONG: dict[str, np.ndarray] = {
    "those of one image": np.repeat(FLAT[:1], 40, 0),
    "those of other images": np.roll(FLAT, 7, 0),
    "uniform": np.full_like(FLAT, 1 / 6),
    "nearer to uniform": softmax(np.log(FLAT) / 2),
}


def answers_of(values: np.ndarray, kind: Kind = "probabilities") -> Answers:
    rows = np.arange(len(values))
    return Answers(kind, rows, rows, values.argmax(1), None if kind == "classes" else values, ())


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_answers_of_a_network_with_nearly_equal_ones_are_told(wrong: np.ndarray) -> None:
    assert np.abs(wrong - FLAT).max() < 0.03  # which would be nothing for a network that is sure
    ours = FaultMatch((), FLAT, answers_of(wrong))
    assert ours.misses > 20
    fault = Fault("mirrored", "layout", np.fliplr, "")  # which gives the same, and ours something far from it
    assert not FaultMatch((fault,), FLAT, answers_of(wrong)).fits(FaultMatch((), 1 - FLAT, answers_of(wrong)))
    assert FaultMatch((), np.log(FLAT), answers_of(np.log(wrong), "logits")).misses > 20
    if (wrong.argmax(1) != FLAT.argmax(1)).any():
        assert FaultMatch((), FLAT, answers_of(wrong, "classes")).misses > 10
    for values in (FLAT.astype(np.float16).astype(float), FLAT.round(4)):
        right_ones = FaultMatch((), FLAT, answers_of(values))
        assert (right_ones.misses, right_ones.tells) == (0, True)


def test_equal_values_with_other_classes_are_other_answers() -> None:
    """Each class by 0.018 less or more: the two likeliest, 0.03 apart, are exchanged."""
    ours = np.tile([0.4, 0.37, 0.23, 0, 0, 0], (40, 1))
    ours[20:] = ours[20:, ::-1]
    theirs = ours + np.where(ours == 0.4, -0.018, np.where(ours == 0.37, 0.018, 0))
    assert FaultMatch((), ours, answers_of(theirs)).misses == 40
    assert FaultMatch((), ours, answers_of(0.7 * ours + 0.3 * theirs)).misses == 0


def test_answers_that_hardly_differ_between_images_tell_nothing(world: World) -> None:
    """The same image twice, or a network that gives all the same: any other image's answer would be as near."""
    same = np.repeat(FLAT[:1], 40, 0)
    assert not FaultMatch((), same, answers_of(same.round(5))).tells
    copies = world.files / "copies"
    copies.mkdir()
    for name in "abc":
        (copies / f"{name}.png").write_bytes(world.paths[0].read_bytes())
    (values,) = softmax(world.logits(right, world.paths[:1])).round(5).tolist()
    outputs = world.write([(f"{name}.png", *values) for name in "abc"], ("path", *NAMES))
    config = DiagnoseConfig.of(file=world.files / "rgb.onnx", outputs=outputs, data=str(copies))
    result = diagnose_with(world.rgb, config, lambda _: None, 0.0)
    assert result.verdict == "undecided"
    assert "nearly the same for all these images" in str(result.undecided)
    assert "images that differ" in str(result.undecided_remedy)


def test_no_fault_is_named_for_a_program_that_gives_the_same_answer_for_all(world: World, cli: Cli) -> None:
    """Pixels up to 255 times as large give this network's answer of one class, whatever the image: so do others."""
    saturated = softmax(world.logits(FAULTS["not divided by 255"]))
    assert np.abs(saturated - saturated[0]).max() < 1e-4
    almost = saturated.copy()
    almost[3] = softmax(world.logits(right))[3]
    for values, images in ((saturated, "for all images"), (almost, "for nearly all images")):
        asked = ("--outputs", world.write_values(values), "--data", world.folder)
        ended = cli("diagnose", world.files / "rgb.onnx", *asked)
        assert ended.code == 1
        assert f"your program gives the same answer {images}" in ended.err
        assert "Explained" not in ended.out
        possible = " ".join(ended.out.partition("Possible:")[2].split())
        assert re.search("not divided by 255; |; not divided by 255", possible)  # not alone
        assert "BGR" not in possible.partition("first images")[0]
    one = world.diagnose(world.write_values(np.repeat(softmax(world.logits(right))[:1], 30, 0)))
    assert one.verdict == "undecided"
    assert not any(each.explains for each in one.hypotheses)


def test_images_are_listed_if_the_nearest_fault_is_near_for_each(
    world: World, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values are within what a few images may differ by, but of all images: another reason."""
    monkeypatch.setattr(fault_search, "MOST_FAULTS", 1)
    values = 0.9 * softmax(world.logits(bgr)) + 0.1 / len(NAMES)
    asked = ("--outputs", world.write_values(values), "--data", world.folder)
    ended = cli("diagnose", world.files / "rgb.onnx", *asked, "--json")
    assert ended.code == 1, ended.err
    assert "No fault explains the answers" in ended.err
    assert "Internal" not in ended.err
    assert ended.json["best"]["faults"] == ["BGR"]
    assert 0.02 < ended.json["best"]["max_diff"] < 0.1
    differing = ended.json["differing"]
    assert len(differing) == 5
    assert differing[0]["path"] in ended.err
    ours = {path.name: NAMES[z.argmax()] for path, z in zip(world.paths, world.logits(right), strict=True)}
    assert [image["ours"] for image in differing] == [ours[Path(image["path"]).name] for image in differing]


def test_the_command_names_the_fault_and_what_to_change(world: World, cli: Cli) -> None:
    world.write_values(world.logits(bgr))
    asked = (world.files / "rgb.onnx", "--outputs", world.files / "mine.csv", "--data", world.folder)
    ended = cli("diagnose", *asked)
    assert ended.code == 0, ended.err
    assert "Explained: BGR: 30 of 30 answers equal (our preprocessing: " in ended.out
    assert "cv2.cvtColor(image, cv2.COLOR_BGR2RGB)" in ended.out


def test_many_forms_of_tables_are_read(world: World) -> None:
    """Whatever a program writes for paths, names of columns, separators and numbers."""
    z = world.logits(right)
    names = [NAMES[label] for label in z.argmax(1)]
    relative = [path.relative_to(world.folder) for path in world.paths]
    both = list(zip(relative, z.tolist(), strict=True))
    tables = {
        "names alone": ([(path.name, name) for path, name in zip(relative, names, strict=True)], ("file", "label")),
        "without endings": ([(path.stem, name) for path, name in zip(relative, names, strict=True)], ("id", "top1")),
        "of Windows": ([(f"D:\\data\\{p.parent}\\{p.name}", n) for p, n in zip(relative, names, strict=True)], None),
        "numbers": (
            [(path, float(label)) for path, label in zip(relative, z.argmax(1), strict=True)],
            ("Path", "Pred"),
        ),
        "values, no header": ([(path, *row) for path, row in both], None),
        "values, numbered": ([(path, *row) for path, row in both], ("image", *(f"logit_{i}" for i in range(6)))),
        "values from p1": ([(path, *row) for path, row in both], ("image", *(f"p{i}" for i in range(1, 7)))),
        "values in another order": (
            [(path, *row[::-1]) for path, row in both],
            ("image", *(f"prob_{name}" for name in NAMES[::-1])),
        ),
        "a class, too": (
            [(name, path, *row) for name, (path, row) in zip(names, both, strict=True)],
            ("class", "path", *NAMES),
        ),
    }
    for name, (rows, header) in tables.items():
        result = world.diagnose(world.write(rows, header))
        assert result.verdict == "equal", name
        assert (result.kind == "logits") == (header is None or len(header) > 2 or "values" in name) or "Windows" in name
        assert not result.bad_lines
    lines = [f"{path},{name}" for path, name in zip(relative, names, strict=True)]
    text = {
        "of Excel": "\n".join(["sep=;", "path;class", *(line.replace(",", ";") for line in lines)]),
        "with comments": "\n".join(["# it's mine, \"v2", "path,class", "# of today", *lines]),
        "of NumPy": "\n".join(["# path,class", *lines]),
        "class first": "\n".join(",".join(reversed(line.split(","))) for line in lines),
        "index first": "\n".join(f"{number},{line}" for number, line in enumerate(lines)),
        "numbered columns": "\n".join(["0,1", *lines]),
        "in upper case": "\n".join(
            ["PATH,Class", *(line.split(",")[0].upper() + "," + line.split(",")[1] for line in lines)]
        ),
        "twice": "\n".join(["path,class", *lines, *lines]),
        "percent": "\n".join(
            [
                ",".join(["path", *NAMES]),
                *(
                    f"{p}," + ",".join(f"{v * 100:.4f}%" for v in row)
                    for p, row in zip(relative, softmax(z), strict=True)
                ),
            ]
        ),
    }
    images = FolderImages(world.folder, tuple(map(str, relative)), np.zeros(30, np.int64))
    for name, content in text.items():
        (world.files / "text.csv").write_text(content)
        read = read_answers(world.files / "text.csv", images, NAMES)
        assert len(read) == 30, name
        assert [NAMES[label] for label in read.classes] == names, name
        assert not read.bad_lines, name
    assert read.kind == "probabilities"
    german = world.files / "german.csv"
    percent = [
        ";".join([str(p), *(f"{v * 100:.4f}".replace(".", ",") for v in softmax(z)[i])])
        for i, (p, _) in enumerate(both)
    ]
    german.write_bytes("\r\n".join([";".join(["Pfad", *NAMES]), *percent]).encode("utf-16"))
    result = world.diagnose(german)
    assert (result.verdict, result.kind) == ("equal", "probabilities")


@pytest.mark.parametrize(
    ("answer", "verdict", "read_as", "faults"),
    [
        (lambda label: label, "equal", "numbers", ()),
        (lambda label: label + 1, "equal", "names", ()),
        (lambda label: label - 1, "explained", "numbers", ("class numbers one too low",)),
        (lambda label: 6 - label, "explained", "names", ("class names in reverse order",)),
    ],
)
def test_classes_that_are_called_by_numbers_are_read_as_what_comes_nearer(
    world: World, answer: Callable[[int], int], verdict: str, read_as: str, faults: tuple[str, ...]
) -> None:
    metadata = world.rgb.metadata.model_copy(update={"class_names": ("1", "2", "3", "4", "5", "6")})
    classes = [answer(int(label)) for label in world.logits(right).argmax(1)]
    result = world.diagnose(world.write_classes(classes), Classifier.from_session(metadata, world.rgb.session))
    assert (result.verdict, result.read_as, result.best.faults) == (verdict, read_as, faults)


def test_the_predicted_class_is_read_not_the_true_one(world: World, cli: Cli) -> None:
    names = [NAMES[label] for label in world.logits(right).argmax(1)]
    rows = [(path, "ant", "cow", name) for path, name in zip(world.paths, names, strict=True)]
    outputs = world.write(rows, ("path", "target", "label", "Prediction"))
    result = world.diagnose(outputs)
    assert (result.verdict, result.column) == ("equal", "Prediction")
    ended = cli("diagnose", world.files / "rgb.onnx", "--outputs", outputs, "--data", world.folder)
    assert "column Prediction" in ended.out


def test_long_tables_are_read_in_a_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = world.files / "long.csv"
    started = time.perf_counter()
    outputs.write_text(f"path,{')' * 60_000},class\n00.png,1,ant\n")
    assert world.diagnose(outputs).images == 1
    monkeypatch.setattr(answer_table, "MAX_LINES", 10)
    result = world.diagnose(world.write_classes(world.logits(right).argmax(1).tolist()))
    assert (result.is_cut, result.images) == (True, 10)
    assert time.perf_counter() - started < 30  # a minute and more where the time grows with the square


def test_lines_that_cannot_be_used_are_left_out_and_named(world: World) -> None:
    names = [NAMES[label] for label in world.logits(right).argmax(1)]
    rows: list[tuple[object, ...]] = list(zip(world.paths, names, strict=True))
    rows[4:4] = [("gone.png", "ant"), (world.paths[0], "dog"), (world.paths[0],), (world.paths[0], 99)]
    result = world.diagnose(world.write(rows, ("path", "class")))
    assert result.verdict == "equal"
    assert result.images == 30
    assert [line.split(":")[0] for line in result.bad_lines] == ["line 6", "line 7", "line 8", "line 9"]
    assert "no image 'gone.png'" in result.bad_lines[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no table"),
        (b"just some words\nand more\n", "no table"),
        (b"path,class\n", "has no answers"),
        (b"path,class\ngone.png,ant\n", "there is no image 'gone.png'"),
        (b"path,class\n00.png,dog\n", "no class 'dog'"),
        (b"path,true_class\n00.png,ant\n", "neither a column of your program's classes"),
        (b"path,class\n00.png,ant\n00.png,cow\n", "line 2: its image has another answer in line 3"),
        (b"path,ant,k10,Bee,k9,cow,k2\n00.png,1,2,nan,4,5,6\n", "line 2: a value is nan"),
        (b"path,ant,k10,Bee,k9,cow,k2\n00.png,1,2,x,4,5,6\n", "line 2: 'x' is not a number"),
        (b"path,ant,k10,Bee,k9,cow\n00.png,1,2,3,4,5\n", "no column for class 'k2' (1 missing)"),
        (b"path,seconds,host\n00.png,1,2\n", "neither a column of your program's classes"),
        (b"seconds,class\n1,ant\n", "no column of image paths"),
        (b"path,class\n\xff\xfe\xfa,ant\n", "is not text in UTF-8"),
        (b'path,class\n"' + b"x" * 200_000 + b'",ant\n', "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(world: World, content: bytes, words: str) -> None:
    outputs = world.files / "bad.csv"
    outputs.write_bytes(content)
    with pytest.raises(UserError) as refused:
        world.diagnose(outputs)
    assert words in refused.value.cause
    assert refused.value.remedy
    assert not re.search(r"[.?!][.?!]", str(refused.value).replace("...", ""))
    assert "number" not in words or "--data" not in refused.value.remedy


def test_what_is_missing_is_said(world: World, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    file, outputs = world.files / "rgb.onnx", world.write_classes(["ant"] * 30)
    for arguments, words in [
        ((file,), "No answers of your program are given"),
        ((file, "--outputs", world.files / "no.csv", "--data", world.folder), "no.csv does not exist"),
        ((file, "--outputs", outputs), "not known which images"),
        ((file, "--outputs", outputs, "--data", world.files / "nowhere"), "does not exist"),
        ((outputs, "--outputs", outputs, "--data", world.folder), "is damaged"),
    ]:
        ended = cli("diagnose", *arguments)
        assert ended.code == 2, ended.err
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert words in line
    monkeypatch.setattr(answer_table, "MAX_CSV_BYTES", 100)
    with pytest.raises(UserError, match="more than the 100 B that are read"):
        world.diagnose(outputs)


def test_the_validation_images_of_the_run_are_known(
    cli: Cli, trained: TrainResult, digit_files: DigitFiles, tmp_path: Path
) -> None:
    """Digits in Parquet, which have no paths but numbers; the program has forgotten the normalization."""
    file = trained.run.export / "model.onnx"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(digit_files.normalized.read_bytes())
    images = open_source(trained.record.config).encoded("val").read(range(60))
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("L")) for image in images])  # type: ignore[arg-type]
    (logits,) = session.run(None, {"images": pixels[:, None].astype(np.float32)})
    outputs = tmp_path / "mine.csv"
    outputs.write_text("\n".join(["path,class", *(f"{i},{label}" for i, label in enumerate(logits.argmax(1)))]))
    ended = cli("diagnose", file, "--outputs", outputs, "--json")
    file.unlink()
    assert ended.code == 1, ended.err
    assert ended.json["verdict"] == "undecided"  # it answers the same class for nearly all, as with other faults
    assert ["no normalization, 0 to 255"] in [one["faults"] for one in (ended.json["best"], *ended.json["ties"])]


GREY_FAULTS: dict[str, Callable[[Path], np.ndarray]] = {
    "grey of RGB taken for BGR": lambda p: cv2.cvtColor(np.asarray(upright(p)), cv2.COLOR_BGR2GRAY),
    "grey as the mean of the channels": lambda p: np.asarray(upright(p)).mean(2).round().astype(np.uint8),
    "the red channel only": lambda p: np.asarray(upright(p))[..., 0],
    "the blue channel only": lambda p: np.asarray(upright(p))[..., 2],
}


@pytest.mark.slow
def test_faults_of_grey_networks_are_named(world: World) -> None:
    def prepare(grey: np.ndarray) -> np.ndarray:
        return ((np.asarray(fit(pillow_of(grey))) / 255 - MEAN[0]) / STD[0])[None]

    x = np.stack([prepare(np.asarray(upright(path, "L"))) for path in world.paths])
    grey = load(write_model(world.files / "grey.onnx", x))
    programs = {name: lambda p, read=read: prepare(read(p)) for name, read in GREY_FAULTS.items()}
    programs["mean and std of MNIST"] = lambda p: ((np.asarray(fit(upright(p, "L"))) / 255 - 0.1307) / 0.3081)[None]
    for name, program in programs.items():
        result = world.diagnose(
            world.write_values(grey.session.run(np.stack([program(p) for p in world.paths]).astype(np.float32))), grey
        )
        assert result.best.faults == (name,)
        assert result.verdict == "explained"
