"""Weights that were trained elsewhere, under torchvision's names."""

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

from resnet_ops.errors import UserError
from resnet_ops.export import weights
from resnet_ops.export.config import ExportConfig
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


WRAPPED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "alone": lambda state: state,
    "nested": lambda state: {"state_dict": state, "epoch": 3},
    "of DDP": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    "half": lambda state: {n: v.half() if v.is_floating_point() else v for n, v in state.items()},
    "without counters": lambda state: {n: v for n, v in state.items() if "num_batches" not in n},
}


@pytest.mark.parametrize("way", WRAPPED)
def test_they_are_found_in_what_trainers_save(way: str, network: nn.Module, tmp_path: Path) -> None:
    torch.save(WRAPPED[way](network.state_dict()), tmp_path / "w.pth")
    checkpoint = weights.read(tmp_path / "w.pth", config(tmp_path / "w.pth"))
    ours = checkpoint.info.build_network().eval()
    ours.load_state_dict(checkpoint.model)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), network(x), atol=2e-2 if way == "half" else 1e-5, rtol=1e-3)
    assert (checkpoint.info.shortcut, checkpoint.info.stored) == ("B", (72, 72))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        weights.read(path, config(path, **options))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_said(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    assert "does not contain the weights of resnet34" in refusal(path, model="resnet34")
    assert "Unknown network" in refusal(path, model="vgg16")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert "has 2 classes; the weights have 3" in refusal(path, classes=tmp_path / "names.txt")
    assert "must be one number above 0 for each of 3 channels" in refusal(path, mean="0.5")
    torch.save(torchvision.models.alexnet(num_classes=3).state_dict(), tmp_path / "a.pth")
    assert "contains no conv1.weight of a residual network" in refusal(tmp_path / "a.pth")
    torch.save(network, tmp_path / "whole.pth")
    assert "a pickle of more than tensors" in refusal(tmp_path / "whole.pth")
    path.write_bytes(path.read_bytes()[:1000])
    assert "is damaged" in refusal(path)


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
    assert ended.json["images"] == 4
    assert re.search(r"resize and crop +at most \d level", ended.err)
    assert ended.json["val_accuracy_onnx"] == ended.json["val_accuracy_torch"]
    assert "With --model" in cli("export", tmp_path / "none.pth", *given[2:]).err
    (tmp_path / "photos" / "apple").rename(tmp_path / "photos" / "appel")
    ended = cli(*given, "--data", tmp_path / "photos")
    assert ended.code == 2
    assert "Did you mean apple?" in ended.err
