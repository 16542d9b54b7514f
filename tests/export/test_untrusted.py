"""Untrusted files: one line for each fault, and nothing is run outside of the sandbox before it ran there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper

from resnet_ops.errors import UserError
from resnet_ops.export import graph, untrusted
from resnet_ops.training.checkpoint import Checkpoint
from tests.conftest import Ended
from tests.export.samples import copy, make_checkpoint, make_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("small") / "c.safetensors", "resnet8", (8, 8), 1)


@pytest.fixture(scope="module")
def files(small: Checkpoint) -> dict[str, Path]:
    """Good files of each kind."""
    folder = small.path.parent
    paths = {
        "normalized": folder / "normalized.onnx",
        "raw": folder / "raw.onnx",
        "checkpoint": small.path,
        "safetensors": folder / "weights.safetensors",
        "pickle": folder / "weights.pth",
    }
    graph.write(make_model(small), paths["normalized"])
    graph.write(make_model(small, raw=True), paths["raw"])
    safetensors.torch.save_file(small.model, paths["safetensors"])
    torch.save({"state_dict": small.model}, paths["pickle"])
    return paths


DAMAGED = [
    ("normalized", "onnx", 150),
    ("raw", "onnx", 150),
    ("checkpoint", "checkpoint", 100),
    ("safetensors", "weights", 80),
    ("pickle", "weights", 80),
]  # 560 in all; a tenth of them each time, the others by `make test-slow`


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [*((name, kind, count // 10) for name, kind, count in DAMAGED),
     *(pytest.param(*one, marks=pytest.mark.slow) for one in DAMAGED)],
)  # fmt: skip
def test_damaged_files_are_refused_or_used_and_nothing_else(
    name: str, kind: str, count: int, files: dict[str, Path]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.export.fuzzing", str(files[name]), kind, str(count)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    endings = json.loads(ended.stdout.splitlines()[-1])
    assert sum(endings.values()) == count
    assert set(endings) <= {"done", "refused"}, endings
    assert endings["refused"] > 0


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        untrusted.check_file(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def broken(files: dict[str, Path], change: Callable[[onnx.ModelProto], object], folder: Path) -> Path:
    model = onnx.load(str(files["normalized"]))
    change(model)
    (folder / "broken.onnx").write_bytes(model.SerializeToString())
    return folder / "broken.onnx"


def test_content_that_other_programs_read_differently_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """From memory ONNX Runtime takes a file for its own format by four bytes, which may lie in what is overwritten."""
    content, file = files["normalized"].read_bytes(), tmp_path / "twofold.onnx"
    # Types of -1 in five bytes each, where protobuf writes ten; what it passes over fills the room.
    short = b"\x3a\x96\x01" + 10 * b"\x6a\x0d\x0a\x01x\x12\x08\x0a\x06\x08\xff\xff\xff\xff\x0f"
    as_long = content + short + b"\xfa\x3f\x2c" + b"ORTM" * 11
    read = onnx.ModelProto.FromString(as_long)
    read.DiscardUnknownFields()
    assert read.ByteSize() == len(as_long)
    for planted in (
        b"\x08\x0a\x12\x04ORTM" + content,  # a version and a producer, both of which come again
        content + b"\xfa\x3f\x04evil",  # an unknown field
        b"\x3a\x00" + content,  # an empty graph, merged with the one that follows
        as_long,
    ):
        file.write_bytes(planted)
        assert "more than an ONNX model" in refusal(file)


@pytest.mark.parametrize(
    "name",
    [
        lambda m: (m, "producer_name"), lambda m: (m.graph, "name"), lambda m: (m.graph.node[0], "name"),
        lambda m: (m.graph.node[0], "domain"), lambda m: (m.opset_import[0], "domain"),
        lambda m: (m.graph.node[0].attribute[0], "name"), lambda m: (m.graph.initializer[0], "name"),
    ],
)  # fmt: skip
def test_names_that_are_not_text_are_refused(
    name: Callable[[onnx.ModelProto], tuple[object, str]], files: dict[str, Path], tmp_path: Path
) -> None:
    file = broken(files, lambda model: setattr(*name(model), "Q" * 8), tmp_path)
    file.write_bytes(file.read_bytes().replace(b"Q" * 8, b"\xff\xfe" * 4))
    assert "names that are not text" in refusal(file)


def test_weights_beside_a_file_are_as_many_as_it_says(files: dict[str, Path], tmp_path: Path) -> None:
    """Tools read all of a file of weights whose length is not given: a sparse one fills the memory."""

    def move(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "fc.weight")
        (tmp_path / "weights").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")

    file = broken(files, move, tmp_path)
    model = untrusted.with_weights(file, untrusted.scan(file)[0])
    original = onnx.load(files["normalized"])
    assert {t.name: t.raw_data for t in model.graph.initializer} == {
        t.name: t.raw_data for t in original.graph.initializer
    }
    here = broken(files, lambda m: m.graph.initializer[0].external_data.add(key="location", value="weights"), tmp_path)
    assert "has its weights here" in refusal(here)
    file = broken(files, move, tmp_path)
    with (tmp_path / "weights").open("ab") as weights:
        weights.truncate(2**40)
    assert "does not match the shape of tensor 'fc.weight'" in refusal(file)


def test_a_graph_of_too_many_parts_is_refused(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MAX_PARTS", 100)
    assert "too many parts" in refusal(files["normalized"])


def test_what_is_wrong_is_said_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    def foreign(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.example"

    def loop(model: onnx.ModelProto) -> None:
        body = copy(model).graph
        model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))

    def absurd(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = 2**40

    def overflowing(model: onnx.ModelProto) -> None:
        model.graph.initializer.add(name="zero", data_type=onnx.TensorProto.UINT8, int32_data=[256])

    def negative(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -1

    def huge_padding(model: onnx.ModelProto) -> None:
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        next(a for a in conv.attribute if a.name == "pads").ints[:] = [2**30] * 4

    def nameless(model: onnx.ModelProto) -> None:
        del model.metadata_props[:]

    assert "uses operators of com.example" in refusal(broken(files, foreign, tmp_path))
    assert "loops, branches or functions" in refusal(broken(files, loop, tmp_path))
    assert "does not match its shape" in refusal(broken(files, absurd, tmp_path))
    assert "has numbers that its type does not have" in refusal(broken(files, overflowing, tmp_path))
    assert "a value has a negative size" in refusal(broken(files, negative, tmp_path))
    assert "ONNX Runtime c" in refusal(broken(files, huge_padding, tmp_path))
    assert "has no class names in its metadata" in refusal(broken(files, nameless, tmp_path))
    assert "does not exist" in refusal(tmp_path / "none.onnx")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "cut.onnx").write_bytes(files["raw"].read_bytes()[:-1000])
    assert "is damaged" in refusal(tmp_path / "cut.onnx")
    with (tmp_path / "large.onnx").open("wb") as sparse:
        sparse.truncate(3 * 2**30)
    assert "more than an ONNX file can have" in refusal(tmp_path / "large.onnx")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../secret", "keeps weights outside its folder"),
        ("/etc/hostname", "keeps weights outside its folder"),
        ("soft", "keeps weights in a symbolic link"),
        ("hard", "keeps weights in a symbolic link"),
        ("none", "is missing next to it"),
        ("w" * 300, "cannot be read: File name too long"),
    ],
)
def test_weights_elsewhere_are_not_followed(
    location: str, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(bytes(2**20))
    (inner / "soft").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", inner / "hard")

    def point(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    assert message in refusal(broken(files, point, inner))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((("location", "w"), ("location", "v")), "says twice"),
        ((("location", "w"), ("basepath", "/tmp")), "otherwise than ONNX"),
        ((("location", "w"), ("checksum", "certified")), "otherwise than ONNX"),
        ((("location", "w"), ("offset", "1e3")), "a place that is no number"),
    ],
)
def test_the_place_of_weights_is_said_once(
    entries: tuple[tuple[str, str], ...], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "w").write_bytes(bytes(2**20))

    def point(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)

    assert message in refusal(broken(files, point, tmp_path))


def test_a_command_says_it_and_ends(cli: Callable[..., Ended], files: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(4):
        content = bytearray(files["normalized"].read_bytes())
        for place in rng.integers(3000, size=20):
            content[place] = int(rng.integers(256))
        (tmp_path / f"{number}.onnx").write_bytes(content)
        ended = cli("validate", tmp_path / f"{number}.onnx", "--data", "digits")
        assert ended.code == 2
        assert len(ended.err.splitlines()) == 1
        assert ended.err.startswith("error: ")
