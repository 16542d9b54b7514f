"""Sixty-four valid exports pass: networks of all families, depths, shortcuts, sizes, opsets and precisions."""

import itertools
from pathlib import Path

import pytest

from resnet_ops.export import graph, runtime
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.export.reference import Reference
from tests.export.samples import OPSET, finish, make_checkpoint, make_images, make_lower, verify_model

SMALL = [
    (name, shortcut, size, channels, raw)
    for (name, shortcut), (size, channels), raw in itertools.product(
        [("resnet8", "A"), ("resnet8", "B"), ("resnet14", "C"), ("plain8", None), ("plain20", None)],
        [((8, 8), 1), ((32, 32), 3), ((12, 20), 3), ((28, 28), 1)],
        (False, True),
    )
]
LARGE = [
    ("resnet56", "A", (16, 16), 3, False),
    ("plain56", None, (8, 8), 1, True),
    ("resnet18", "B", (32, 32), 3, False),
    ("resnet18", "A", (32, 32), 3, True),
    ("plain18", None, (40, 32), 3, True),
    ("resnet50", "B", (32, 32), 1, False),
    ("resnet50-cifar", "A", (12, 12), 3, False),
]
BASELINES = [
    ("alexnet", None, (64, 64), 3, False),
    ("vgg19", None, (32, 32), 1, True),
    ("googlenet", None, (32, 32), 3, True),
]
FORMS = [
    ("resnet14", "fp16", False, False),
    ("plain14", "fp16", True, False),
    ("resnet20", "fp16", True, True),
    ("resnet18", "fp16", False, True),
    ("resnet14", "int8", True, False),
    ("resnet20", "int8", False, False),
    ("resnet56", "int8", True, True),
    ("resnet14", "int8", False, True),
]
OPSETS = range(18, 24)


def test_they_are_at_least_sixty() -> None:
    assert len({*SMALL, *LARGE, *BASELINES}) + len(set(FORMS)) + len(OPSETS) >= 60


# Each takes seconds. Some of all kinds are checked each time, the others by `make test-slow`.
CHECKED = [
    one if index == 12 and index < len(SMALL) else pytest.param(*one, marks=pytest.mark.slow)
    for index, one in enumerate([*SMALL, *LARGE, *BASELINES])
]


@pytest.mark.parametrize(("name", "shortcut", "size", "channels", "raw"), CHECKED)
def test_a_valid_export_passes(
    name: str, shortcut: str | None, size: tuple[int, int], channels: int, raw: bool, tmp_path: Path
) -> None:
    stored = (size[0] + 5, size[1] + 8) if raw and size != (40, 32) else None
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", name, size, channels, shortcut=shortcut, stored=stored)
    model = finish(
        graph.to_onnx(checkpoint.info, checkpoint.model, OPSET), checkpoint, raw=raw, softmax=raw and channels == 1
    )
    report = verify_model(model, Reference(checkpoint), make_images((size[0] + 9, size[1] + 4), channels, 20), tmp_path)
    assert report.validated, report.failed_checks
    assert report.max_rel_diff < 5e-6
    assert report.images == 20
    # Of raw files ONNX Runtime may compute some arithmetic of shapes and positions when it loads them.
    fewest = len(model.graph.node) - (10 if raw else 0)
    assert report.nodes_by_provider.keys() == {runtime.CPU}
    assert fewest <= report.nodes_by_provider[runtime.CPU] <= len(model.graph.node)


@pytest.mark.parametrize("opset", [pytest.param(o, marks=pytest.mark.slow) for o in OPSETS])
def test_every_opset_passes(opset: int, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet8", (10, 12), 3)
    model = finish(graph.to_onnx(checkpoint.info, checkpoint.model, opset), checkpoint, raw=opset % 2 == 0)
    report = verify_model(model, Reference(checkpoint), make_images((10, 12), 3, 20), tmp_path, opset=opset)
    assert report.validated, report.failed_checks


@pytest.mark.parametrize(
    ("name", "form", "raw", "softmax"),
    [one if index % 4 == 0 else pytest.param(*one, marks=pytest.mark.slow) for index, one in enumerate(FORMS)],
)
def test_lower_precisions_pass_too(name: str, form: str, raw: bool, softmax: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", name, (16, 16), 3)
    images = make_images((16, 16), 3, 60)
    pixels = images.sample(60, Preprocessing.of(checkpoint.info, "normalized").crop)
    model = make_lower(checkpoint, form, pixels, raw=raw, softmax=softmax)
    # Untrained networks are never sure: of 60 images of noise some change sides in int8.
    report = verify_model(model, Reference(checkpoint), images, tmp_path, max_accuracy_drop=0.2, precision=form)
    assert [c for c in report.failed_checks if form == "fp16" or c.name != "top-1 agreement"] == []
    assert report.max_rel_diff > 1e-6
