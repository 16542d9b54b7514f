"""Fifty honest exports: networks of all families, depths, shortcuts, sizes and forms are proven."""

import itertools
from pathlib import Path

import pytest

from resnet_ops.export import graph, precision, runtime
from resnet_ops.export.classifier import normalised
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.export.reference import Reference
from tests.export.made import OPSET, finish, make_checkpoint, make_shown, proof_of

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
FORMS = [("resnet14", "fp16", False), ("plain14", "fp16", True), ("resnet14", "int8", True)]


def test_they_are_fifty() -> None:
    assert len(SMALL) + len(LARGE) + len(FORMS) == 50


# Each takes seconds. Some of all kinds are looked at each time, the others by `make test-chaos`.
CHECKED = [
    one if index % 7 == 0 else pytest.param(*one, marks=pytest.mark.slow) for index, one in enumerate([*SMALL, *LARGE])
]


@pytest.mark.parametrize(("name", "shortcut", "size", "channels", "raw"), CHECKED)
def test_a_sound_export_is_proven(
    name: str, shortcut: str | None, size: tuple[int, int], channels: int, raw: bool, tmp_path: Path
) -> None:
    square = size[0] == size[1] and raw
    made = make_checkpoint(
        tmp_path / "c.safetensors", name, size, channels, shortcut=shortcut, stored=size[0] + 5 if square else None
    )
    model = finish(graph.to_onnx(made.info, made.model, OPSET), made, raw=raw, softmax=raw and channels == 1)
    proof = proof_of(model, Reference(made), make_shown((size[0] + 9, size[1] + 4), channels, 20), tmp_path)
    assert proof.validated, proof.refuted_by
    assert proof.max_rel_diff < 5e-6
    assert proof.images == 20
    assert proof.nodes_by_provider == {runtime.CPU: len(model.graph.node)}


@pytest.mark.parametrize(("name", "form", "raw"), FORMS)
def test_in_fewer_bits_too(name: str, form: str, raw: bool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c.safetensors", name, (16, 16), 3)
    shown = make_shown((16, 16), 3, 60)
    steps = Preprocessing.of(made.info, "normalized")
    x = normalised(shown.first(60, steps.frame), steps)
    model = graph.to_onnx(made.info, made.model, OPSET)
    model = precision.to_fp16(model, x)[0] if form == "fp16" else precision.to_int8(model, x, runtime.CPU)[0]
    model = finish(model, made, raw=raw, precision=form)
    # Untrained networks are never sure: of 60 images of noise some change sides in 8 bits.
    proof = proof_of(model, Reference(made), shown, tmp_path, max_accuracy_drop=0.2)
    assert [c for c in proof.refuted_by if form == "fp16" or c.name != "top-1 agreement"] == []
    assert proof.max_rel_diff > 1e-6
