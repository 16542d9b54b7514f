"""`diagnose` names the fault of a program: each is planted in a program of its own, in Pillow, OpenCV and numpy."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image, ImageOps

from resnet_ops.errors import UserError
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import DiagnoseConfig
from resnet_ops.export.diagnosis import DiagnoseResult, diagnose_with
from tests.conftest import Ended
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    files = tmp_path_factory.mktemp("world")
    paths = write_photos(files / "val")
    x = np.stack([right(path) for path in paths])
    rgb, raw = write_model(files / "rgb.onnx", x), write_model(files / "raw.onnx", x, raw=True)
    return World(files / "val", paths, Classifier(rgb, "cpu"), Classifier(raw, "cpu"), files)


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


@pytest.mark.parametrize(("fault", "program"), FAULTS.items(), ids=FAULTS)
def test_each_fault_is_named(world: World, fault: str, program: Program) -> None:
    logits = world.logits(program)
    values = logits if len(fault) % 2 else softmax(logits)
    result = world.diagnose(world.write_values(values))
    assert result.verdict == "explained", result
    assert result.best.faults == (fault,)
    assert result.kind == ("logits" if len(fault) % 2 else "probabilities")
    assert result.best.equal >= 35
    assert result.best.remedies[0]


@pytest.mark.parametrize(
    "fault", ["BGR", "mean and std not applied", "EXIF orientation ignored", f"squashed to {SIDE}x{SIDE}"]
)
def test_classes_alone_are_enough_for_coarse_faults(world: World, fault: str) -> None:
    classes = world.logits(FAULTS[fault]).argmax(1)
    result = world.diagnose(world.write_classes([NAMES[label] for label in classes]))
    assert result.verdict == "explained"
    assert (fault,) in [one.faults for one in (result.best, *result.ties)]
    assert result.best.max_diff is None
    assert result.best.equal == 36 > result.ours.equal
    assert 0 < result.telling <= 36 - result.ours.equal


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
    assert result.best.compared == 36 - fault.startswith("each")  # which image was before the first is not known


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
    def mirrored_bgr(path: Path) -> np.ndarray:
        return bgr(path)[:, :, ::-1]

    two = world.diagnose(world.write_values(world.logits(mirrored_bgr)))
    assert set(two.best.faults) == {"BGR", "mirrored"}
    with_softmax = world.diagnose(world.write_values(softmax(softmax(world.logits(bgr)))))
    assert set(with_softmax.best.faults) == {"BGR", "softmax applied twice"}
    three = world.diagnose(world.write_values(world.logits(opencv)))
    assert set(three.best.faults) == {
        "BGR",
        "mean and std not applied",
        f"squashed to {SIDE}x{SIDE}, bilinear without antialiasing (cv2.resize)",
    }
    assert len(three.best.remedies) == 3
