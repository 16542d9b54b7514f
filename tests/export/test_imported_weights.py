"""Weights that were trained elsewhere, under torchvision's names."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import imported_weights
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import select_images
from resnet_ops.models import build
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.weights.locate import locate
from tests.conftest import Ended


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3)
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64))
    return network.eval()


def config(path: Path, **options: Any) -> ExportConfig:
    return ExportConfig.of(**({"run": str(path), "model": "resnet18", "image_size": 64} | options))


def test_they_become_a_checkpoint(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pth")
    warnings: list[str] = []
    checkpoint = read(tmp_path / "w.pth", warnings.append)
    ours = checkpoint.info.build_network().eval()
    ours.load_state_dict(checkpoint.model)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), network(x), atol=1e-5, rtol=1e-3)
    info = checkpoint.info
    assert (info.shortcut, info.stored, info.class_names) == ("B", (72, 72), ("0", "1", "2"))
    (assumed,) = warnings
    assert "assumed: --mean 0.485,0.456,0.406, --std 0.229,0.224,0.225, --resize 72." in assumed


def test_a_name_of_two_classes_labels_no_images() -> None:
    with pytest.raises(UserError, match="2 classes called '8'"):
        select_images(open_source("digits"), "val", (*map(str, range(9)), "8"))


def test_metadata_or_options_say_how_images_were_prepared(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pth")
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.95, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["a", "b", "c"], "pretrained_cfg": settings}))
    warnings: list[str] = []
    info = read(tmp_path / "w.pth", warnings.append, image_size=224).info
    assert (info.mean, info.std, info.stored, info.class_names) == (
        (0.5,) * 3,
        (0.25,) * 3,
        (236, 236),
        ("a", "b", "c"),
    )
    assert "resized bicubic; the file resizes them bilinearly" in warnings[0]
    info = read(tmp_path / "w.pth", image_size=224, resize=232, mean="0.1,0.2,0.3").info
    assert (info.mean, info.stored) == ((0.1, 0.2, 0.3), (232, 232))
    assert "--resize 230 must be the image size, 224, or larger by a multiple of 4. Use --resize 2" in refusal(
        tmp_path / "w.pth", image_size=224, resize=230
    )


def read(path: Path, warn: Callable[[str], None] = lambda _: None, **options: Any) -> Checkpoint:
    located = locate(str(path), "resnet18", warn)
    assert located is not None
    return imported_weights.read(located, config(path, **options), warn)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_said(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    assert "has the weights of resnet18, not of resnet34. Use --model resnet18" in refusal(path, model="resnet34")
    assert "Unknown network" in refusal(path, model="vgg16")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert "has 2 classes; the weights have 3" in refusal(path, classes=tmp_path / "names.txt")
    assert "must be one number above 0 for each of 3 channels" in refusal(path, mean="0.5")
    assert "pixels from 0 to 255" in refusal(path, mean="123.7,116.3,103.5")
    headless = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    safetensors.torch.save_file(headless, path)
    assert "has no head of one layer" in refusal(path)


@pytest.mark.parametrize("name", ["fc.lora_A", "bnneck.running_mean", "pool.p", "logit_scale"])
def test_tensors_that_may_change_the_answers_are_not_left_out(name: str, tmp_path: Path) -> None:
    """Where the proof compares the file with what was read, it cannot tell that something was not."""
    path, state = tmp_path / "w.pth", build("resnet8", num_classes=3).state_dict()
    torch.save({"state_dict": state | {name: torch.ones(3)}}, path)
    assert f"has {name} beside the tensors of resnet8" in refusal(path, model="resnet8", mean="0.5,0.5,0.5")
    under = {f"net.{key}": value for key, value in state.items()}
    torch.save(
        under | {"temperature": torch.ones(1), "n_averaged": torch.tensor(3), "loss.weight": torch.ones(3)}, path
    )
    assert "--weights-key net" in refusal(path, model="resnet8", mean="0.5,0.5,0.5")
    steps: dict[str, Any] = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "image_size": 32}
    assert read(path, model="resnet8", weights_key="net", **steps).info.model == "resnet8"
    warnings: list[str] = []
    read(path, warnings.append, model=None, weights_key="net", **steps)
    assert "no weights of shortcuts: taken as resnet8" in " ".join(warnings)
    torch.save(under | {f"net.{name}": torch.ones(3)}, path)
    assert f"has net.{name} beside" in refusal(path, model="resnet8", weights_key="net", **steps)
    apart = {"net": state, "head": {"weight": torch.ones(2, 3)}, "optimizer": {"state": {0: {"step": torch.ones(3)}}}}
    torch.save(apart, path)
    assert "has head.weight beside" in refusal(path, model="resnet8", **steps)
    assert read(path, model="resnet8", weights_key="net", **steps).info.model == "resnet8"


BESIDE: dict[str, dict[str, Any]] = {
    "a mean": {"0.mean": torch.ones(1, 3, 1, 1)},
    "a mean of all channels": {"0.std": torch.ones(1)},
    "colors": {"0.weight": torch.ones(3, 3, 1, 1)},
    "a scale of each class": {"2.scale": torch.ones(5)},
    "a matrix": {"2.weight": torch.ones(5, 2)},
    "a convolution": {"2.weight": torch.ones(5, 5, 1, 1)},
    "BatchNorm": {"2.running_mean": torch.ones(5)},
    "an order": {"2.order": torch.arange(5)},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_computes_before_or_after_a_network_is_not_left_out(name: str, tmp_path: Path) -> None:
    """Beside it in one dict, and in one of its own; what is of a training, or a loss, is no part of that."""
    state, path = build("resnet8", num_classes=5).state_dict(), tmp_path / "w.pth"
    steps: dict[str, Any] = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "model": "resnet8"}
    (tensor,) = BESIDE[name]
    named = {f"1.{key}": value for key, value in state.items()}
    torch.save(named | BESIDE[name], path)
    message = refusal(path, **steps)
    assert f"has {tensor} beside the tensors of resnet8" in message
    assert "--weights-key 1; mean and deviation of images are given by --mean and --std" in message
    notes: list[str] = []
    read(path, notes.append, weights_key="1", **steps)
    assert notes == [f"Left out: {tensor}; whether answers depend on that is not known."]
    for inner in ("model", "best_ema"):
        of_training = {"optimizer": {"state": {0: {"m": torch.ones(5)}}}, "best_acc1": torch.ones(1), "lr": 0.1}
        torch.save({"best": {inner: state, "after": {"x": BESIDE[name]}, "loss": torch.ones(1)} | of_training}, path)
        assert f"has best.after.x.{tensor} beside" in refusal(path, **steps)
        torch.save({"best": {inner: state, "temperature": 1.7, "perplexity": torch.ones(7)} | of_training}, path)
        notes.clear()
        read(path, notes.append, **steps)
        assert notes == ["Left out: best.perplexity, best.temperature; whether answers depend on that is not known."]


@pytest.mark.slow
def test_they_are_exported_and_proven(cli: Callable[..., Ended], network: nn.Module, tmp_path: Path) -> None:
    """On random pixels alone, and on images whose classes are some of the network's, in another order."""
    torch.save(network.state_dict(), tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("zebra\napple\nmouse\n")
    rng = np.random.default_rng(0)
    for name in ("apple", "zebra"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (80 + number, 90, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    given = ("export", tmp_path / "w.pth", "--onnx", "--model", "resnet18", "--classes", tmp_path / "names.txt")
    options = ("--image-size", 40, "--input", "raw", "--json")
    ended = cli(*given, *options)
    assert ended.code == 0, ended.err
    assert (ended.json["images"], ended.json["val_accuracy_onnx"]) == (0, None)
    assert "no validation images are known" in ended.err
    assert Path(ended.json["onnx"]) == tmp_path / "model-raw.onnx"
    ended = cli(*given, *options, "--data", tmp_path / "photos", "--out", tmp_path / "out.onnx")
    assert ended.code == 0, ended.err
    assert ended.json["images"] == 20  # all: it was not trained on them
    assert re.search(r"resize and crop +at most \d level", ended.err)
    assert ended.json["val_accuracy_onnx"] == ended.json["val_accuracy_torch"]
    assert "With --model" in cli("export", tmp_path / "none.pth", *given[2:]).err
    (tmp_path / "photos" / "apple").rename(tmp_path / "photos" / "appel")
    ended = cli(*given, "--data", tmp_path / "photos")
    assert ended.code == 2
    assert "Did you mean apple?" in ended.err
