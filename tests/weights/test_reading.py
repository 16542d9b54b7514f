"""Files of weights: what trainers write is read key for key; what is something else is named for what it is."""

import argparse
import collections
import datetime
import gzip
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.weights import pretrained
from resnet_ops.weights.identify import identify
from resnet_ops.weights.pretrained import PretrainedWeights

State = dict[str, Any]


def network(name: str = "resnet8", classes: int = 3, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    made = build(name, num_classes=classes, **options)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return made.eval()


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def with_dropout(state: State) -> State:
    return {name.replace("fc.", "fc.1."): value for name, value in state.items()}


OTHER = under("", network(seed=1).state_dict())
TRAINERS: dict[str, Callable[[State], State]] = {
    "alone": lambda state: state,
    "torchvision's references": lambda s: {"model": s, "epoch": 1, "args": argparse.Namespace(lr=0.1)},
    "DDP": lambda s: {"model": under("module.", s)},
    "torch.compile": lambda s: under("_orig_mod.module.", s),
    "Lightning": lambda s: {
        "state_dict": under("model.", s) | {"criterion.weight": torch.ones(3)},
        "hyper_parameters": {"root": pathlib.PurePosixPath("/x"), "tags": collections.defaultdict(list)},
    },
    "a prefix of its own": lambda s: {"net": {"weights": under("encoder.trunk.", s)}},
    "numpy and dates beside": lambda s: {
        "state_dict": s,
        "best": np.float64(0.9),
        "kind": np.dtype("int64"),
        "history": np.arange(3.0),
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    },
    "in a list": lambda s: [s, 3],
    "arrays": lambda s: {"model": {name: value.numpy() for name, value in s.items()}},
    "SWA": lambda _: AveragedModel(network()).state_dict(),
    "dropout before the head": with_dropout,
    "a head elsewhere": lambda s: {n.replace("fc.", "linear."): v for n, v in under("", s).items()},
    "half precision": lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()},
    "without counters": lambda s: {n: v for n, v in s.items() if "num_batches" not in n},
    "averaged beside plain": lambda s: {"state_dict": OTHER, "state_dict_ema": under("module.", s)},
    "averaged in one dict": lambda s: {"state_dict": under("model.", OTHER) | under("ema_model.module.", s)},
}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_same(weights: PretrainedWeights, expected: nn.Module, tolerance: float = 0) -> None:
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(weights.tensors[name], value, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_trainers_save_is_read(trainer: str, tmp_path: Path) -> None:
    weights = pretrained.read(write(tmp_path / "w.pth", TRAINERS[trainer](network().state_dict())))
    assert (weights.info.model, weights.info.classes, weights.info.channels) == ("resnet8", 3, 3)
    assert_same(weights, network(), 2e-3 if trainer == "half precision" else 0)


def test_which_of_several_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    states = {"state_dict": network(seed=1).state_dict(), "state_dict_ema": network().state_dict()}
    path = write(tmp_path / "w.pth", states)
    weights = pretrained.read(path)
    (note,) = weights.notes
    assert "state_dict_ema" in note
    assert "--weights-key state_dict" in note
    other = pretrained.read(path, key="state_dict")
    assert_same(other, network(seed=1))
    assert other.notes == ()
    with pytest.raises(UserError, match=r"no weights under 'state_dict_em'.* Did you mean state_dict_ema"):
        pretrained.read(path, key="state_dict_em")
    semantic = under("encoder.", network().state_dict()) | under("semantic_encoder.", network(seed=1).state_dict())
    assert_same(pretrained.read(write(path, semantic)), network())
    twice = {"a.b": network().state_dict(), "a": {"b": network(seed=1).state_dict()}}
    assert "two networks under 'a.b'" in refusal(write(path, twice))


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    state = under("model.", network().state_dict()) | {"criterion.weight": torch.ones(3)}
    assert "criterion.weight" in pretrained.read(write(tmp_path / "w.pth", {"state_dict": state})).notes[0]
    state = network().state_dict() | {"fc.0.weight": torch.ones(9, 64), "fc.2.weight": torch.ones(3, 9)}
    del state["fc.weight"], state["fc.bias"]
    weights = pretrained.read(write(tmp_path / "w.pth", state))
    assert weights.info.classes == 0
    assert "fc.0.weight, fc.2.weight" in weights.notes[0]
    state = under("model.", network().state_dict()) | {"arcface.weight": torch.ones(3, 64)}
    del state["model.fc.weight"], state["model.fc.bias"]
    assert "without a bias: arcface.weight" in pretrained.read(write(tmp_path / "w.pth", state)).notes[0]


@pytest.mark.parametrize(
    ("said", "computes"),
    [
        ({"architecture": "resnetblur50"}, "is resnetblur50, which"),
        ({"architecture": "resnet8", "model_args": {"act_layer": "silu", "num_classes": 3}}, "with act_layer silu,"),
        ({"architecture": "resnet8", "global_pool": "max"}, "with global_pool max,"),
        ({"architecture": "resnetaa50", "pretrained_cfg": {}}, "is resnetaa50, which"),
    ],
)
def test_a_network_that_computes_otherwise_with_the_same_tensors_is_refused(
    said: State, computes: str, tmp_path: Path
) -> None:
    """As timm's anti-aliased ones, of which only the file beside them tells."""
    settings = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    path = write(tmp_path / "w.pth", network().state_dict())
    (tmp_path / "config.json").write_text(json.dumps(settings | said))
    assert computes in refusal(path)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_torchvision_networks_are_read_key_for_key(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):  # its own initialization takes a second
        theirs = zoo.get_model(name, num_classes=5).eval()
    theirs.to_empty(device="cpu")
    for value in theirs.state_dict().values():
        value.fill_(1) if value.dtype == torch.int64 else value.uniform_(0.01, 0.1)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    check_logits(theirs, pretrained.read(tmp_path / "w.safetensors"), name)


@pytest.mark.slow  # importing timm takes 6 s
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_timm_networks_are_read_key_for_key(name: str, tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model(name, num_classes=5).eval()
    check_logits(theirs, pretrained.read(write(tmp_path / "w.pth", theirs.state_dict())), name)


def check_logits(theirs: nn.Module, weights: PretrainedWeights, name: str) -> None:
    assert (weights.info.model, weights.info.shortcut, weights.info.classes) == (name, "B", 5)
    ours = build(name, num_classes=5).eval()
    ours.load_state_dict(weights.tensors)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def refusal(path: Path, call: Callable[[Path], object] = pretrained.read) -> str:
    with pytest.raises(UserError) as refused:
        call(path)
    assert "\n" not in str(refused.value)
    assert refused.value.remedy
    return str(refused.value)


def test_another_network_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", network().state_dict())
    info = pretrained.read(path).info
    message = refusal(path, lambda _: pretrained.check_model(info, "resnet20"))
    assert "has the weights of resnet8, not of resnet20. Use --model resnet8, or weights of resnet20." in message
    message = refusal(path, lambda _: pretrained.check_model(info, "resnet50"))
    assert "resnet8, not of resnet50, a CIFAR network, and resnet50 is an ImageNet network" in message
    pretrained.check_model(info, "plain8")  # whose tensors are the same


zoo = torchvision.models
VARIANTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "wide": (lambda: zoo.wide_resnet50_2(), "a variant of resnet50 with 128 channels in its first block, not 64"),
    "depth": (lambda: zoo.ResNet(zoo.resnet.BasicBlock, [2, 2, 3, 2]), "with 2, 2, 3, 2 basic blocks"),
    "groups": (
        lambda: zoo.ResNet(zoo.resnet.Bottleneck, [3, 4, 6, 3], groups=2, width_per_group=32),
        "grouped convolutions (2 groups)",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_named_and_the_nearest(variant: str) -> None:
    make, expected = VARIANTS[variant]
    with torch.device("meta"):
        state = make().state_dict()
    message = refusal(Path("w.pth"), lambda path: identify(path, state))
    assert expected in message
    assert "Use weights of the nearest" in message


def test_other_names_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    state["layer3.0.conv2.weight"] = state["layer3.0.conv2.weight"][:7]
    assert "layer3.0.conv2.weight has shape (7, 64, 3, 3), not (64" in refusal(write(tmp_path / "v.pth", state))
    state |= {f"conv1.{layer}.weight": torch.ones(8, 3, 3, 3) for layer in (0, 3, 6)}
    del state["conv1.weight"]
    assert "deep stem" in refusal(write(tmp_path / "v.pth", state))
    transformers = {"resnet.embedder.embedder.convolution.weight": torch.ones(64, 3, 7, 7)}
    assert "transformers" in refusal(write(tmp_path / "v.pth", transformers))
    assert "no conv1.weight and no bn1.weight" in refusal(write(tmp_path / "v.pth", {"a": torch.ones(2)}))


class Custom:
    pass


def archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, b"x")


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "LFS": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "pointer of Git LFS"),
    "HTML": (lambda p: p.write_text("\n<!DOCTYPE html><html></html>"), "is a web page"),
    "JSON": (lambda p: p.write_text(json.dumps({"weight_map": {}})), "is text (JSON)"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "is a gzip archive"),
    "zip": (lambda p: archive(p, "w/weights.pth"), "a ZIP archive that torch.save did not write"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "TorchScript": (lambda p: torch.jit.script(nn.Linear(2, 2)).save(p), "is a TorchScript program"),
    "whole model": (lambda p: torch.save(zoo.resnet.BasicBlock(4, 4), p), "whole model (torchvision.models.resnet."),
    "whole model, old": (
        lambda p: torch.save(nn.Linear(2, 2), p, _use_new_zipfile_serialization=False),
        "a pickle of more than tensors",
    ),
    "classes": (
        lambda p: torch.save({"state_dict": {}, "x": Custom()}, p),
        "objects of tests.weights.test_reading.Cust",
    ),
    "ONNX": (
        lambda p: onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])),
            p,
        ),
        "is an ONNX file",
    ),
    "cut off": (lambda p: p.write_bytes(write(p, {"a": torch.ones(99)}).read_bytes()[:400]), "is damaged"),
    "noise": (lambda p: p.write_bytes(bytes(range(200))), "is damaged"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_named_for_what_they_are(kind: str, tmp_path: Path) -> None:
    make, expected = KINDS[kind]
    make(tmp_path / "w.pth")
    assert expected in refusal(tmp_path / "w.pth")


def test_small_files_that_mean_more_than_there_is_memory_or_no_end_are_refused(tmp_path: Path) -> None:
    """A view repeats one stored value; a list can contain itself; JSON can be deeper than Python goes."""
    path, one = tmp_path / "weights.pth", torch.zeros(1)
    tensors = build("resnet18", num_classes=3, in_channels=3).state_dict()
    for value in (one.expand(100_000, 100_000, 3, 3), torch.zeros(64, 64, 3, 3).to_sparse()):
        torch.save(tensors | {"layer1.0.conv1.weight": value}, path)
        with pytest.raises(UserError, match=r"no plain values for layer1\.0\.conv1\.weight"):
            pretrained.read(path)
    endless: list[object] = []
    endless.extend([endless] * 300)
    torch.save({"x": endless}, path)
    with pytest.raises(UserError, match="no weights of a residual network"):
        pretrained.read(path)
    path.with_name("config.json").write_text("[" * 100_000)
    torch.save(tensors, path)
    assert pretrained.read(path).info.class_names == ()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """As of a head that bitsandbytes quantized, whose scales are in a tensor of another name."""
    tensors = build("resnet18", num_classes=3, in_channels=3).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(tensors | {"fc.weight": tensors["fc.weight"].to(dtype), "fc.SCB": torch.ones(3)}, path)
    with pytest.raises(UserError, match=f"fc.weight is {dtype}"):
        pretrained.read(path)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "resnet8",
                "label_names": ["cat", "dog", "mouse"],
                "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 0.95, "interpolation": "bicubic"},
            }
        )
    )
    first = pretrained.read(write(tmp_path / "w.pth", network().state_dict()))
    steps = first.info.preprocessing
    assert steps is not None
    assert (steps.mean, steps.crop_share, steps.interpolation) == ((0.5,) * 3, 0.95, "bicubic")
    assert first.info.class_names == ("cat", "dog", "mouse")
    (tmp_path / "run").mkdir()
    pretrained.save(tmp_path / "run" / "weights.safetensors", first)
    again = pretrained.read_saved(tmp_path / "run" / "weights.safetensors", first.info.sha256)
    assert again.info == first.info
    assert_same(again, network())
    with pytest.raises(UserError, match="not the weights that this run began with"):
        pretrained.read_saved(tmp_path / "run" / "weights.safetensors", "0" * 64)


def test_a_file_is_not_believed_where_it_is_from(tmp_path: Path) -> None:
    """Anybody can write what `save` writes: without a run that it is of, the content alone has a checksum."""
    file = tmp_path / "w\u2028.safetensors"
    state = network("plain8").state_dict()
    said = {
        "origin": "torchvision's ResNet50_Weights.DEFAULT\nerror: none",
        "sha256": "0" * 64,
        "model": "plain8",
        "shortcut": None,
        "channels": 3,
        "classes": 3,
        "class_names": ["a", "b", "c"],
        "data_fingerprint": "of your images",
    }

    def write_saying(**other: Any) -> bytes:
        safetensors.torch.save_file(state, file, {pretrained.METADATA_KEY: json.dumps(said | other)})
        return file.read_bytes()

    content = write_saying()
    weights = pretrained.read(file)
    info = weights.info
    assert (info.origin, info.sha256) == (f"{tmp_path}/w\\u2028.safetensors", hashlib.sha256(content).hexdigest())
    assert (info.model, info.class_names, info.data_fingerprint) == ("plain8", ("a", "b", "c"), None)
    assert weights.notes == (f"{info.origin}: that it is plain8, its classes and its normalization are its own word.",)
    assert pretrained.read_saved(file).info.origin == r"torchvision's ResNet50_Weights.DEFAULT\nerror: none"
    for other in (
        {"sha256": "0"},
        {"sha256": "0" * 63 + "\n"},
        {"model": "resnet1000002-cifar"},
        {"channels": -1},
        {"class_names": ["a", "b\u2028c", ""]},
        {"preprocessing": {"mean": [0.5, 0.5], "std": [0.5, 0.5]}},
        {"preprocessing": {"mean": [0.5] * 3, "std": [0.5, 0.5, 0]}},
    ):
        write_saying(**other)
        with pytest.raises(UserError):
            pretrained.read(file)


@pytest.mark.parametrize(
    ("changed", "said", "cause"),
    [
        ({"fc.weight": torch.ones(3, 64, dtype=torch.int8)}, {}, "torch.int8 values for fc.weight"),
        ({"fc.scale": torch.ones(3)}, {}, "unexpected such as fc.scale"),
        ({}, {"model": "resnet14"}, "does not contain the weights of resnet14"),
        ({}, {"classes": 4}, "says that it has 4 classes"),
        ({}, {"class_names": ("a", "b")}, "says that it has 3 classes"),
    ],
)
def test_what_a_saved_file_says_of_itself_is_checked(changed: State, said: State, cause: str, tmp_path: Path) -> None:
    first = pretrained.read(write(tmp_path / "w.pth", network().state_dict()))
    saved = PretrainedWeights(first.info.model_copy(update=said), first.tensors | changed)
    pretrained.save(tmp_path / "w.safetensors", saved)
    assert cause in refusal(tmp_path / "w.safetensors")
