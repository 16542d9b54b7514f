"""Checkpoints as others write them, and files in the wrong place. Cases C15, C22, C23, C25, C48, C52 and their kin.

What single trainers write is in tests/weights; here it goes through the readers of the commands.
"""

import argparse
import collections
import decimal
import json
import pathlib
import pickle
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnet_ops.config import TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.evaluated_network import open_network
from resnet_ops.export import inputs, precision, runtime, untrusted
from resnet_ops.export.config import ExportConfig, PredictConfig, ValidateConfig
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.models import build
from resnet_ops.training.job import TrainResult
from resnet_ops.training.observer import Observer
from resnet_ops.training.start import read_weights
from tests.conftest import DigitFiles, Ended

Cli = Callable[..., Ended]
State = dict[str, Any]


def state_dict(classes: int = 3, seed: int = 0) -> State:
    torch.manual_seed(seed)
    return dict(build("resnet8", num_classes=classes).state_dict())


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def renamed(state: State, old: str, new: str) -> State:
    return {name.replace(old, new): value for name, value in state.items()}


def numbered(state: State) -> State:
    """Names as Sequential of a network's children has them."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "fc": 9}
    return {f"{numbers[(parts := name.partition('.'))[0]]}.{parts[2]}": value for name, value in state.items()}


class Settings:
    """Of a trainer's: pickled by a call and with attributes, as those of OmegaConf are."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values, _parent=None, children={"a": Meter("x")})


class Meter:
    """Pickled as a call with arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return Meter, (self.name,), {"sum": 1.0}


class AttributeDict(dict):  # type: ignore[type-arg]
    """As Lightning's and YACS's."""


OTHER = state_dict(seed=1)
OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
SCHEDULER = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.ones(1)], 0.1), [2, 3]).state_dict()
CHECKPOINTS: dict[str, Callable[[State], Any]] = {
    "C22 a namespace": lambda s: {"model": s, "epoch": 1, "args": argparse.Namespace(lr=0.1)},
    "C22 a number of NumPy": lambda s: {"state_dict": s, "best": np.float64(0.9)},
    "C22 a path": lambda s: {"state_dict": under("model.", s), "hyper_parameters": {"r": pathlib.PosixPath("/x")}},
    "C23 a loss with weights": lambda s: {"state_dict": under("model.", s) | {"criterion.weight": torch.ones(3)}},
    "C23 averaged by torch": lambda s: AveragedModel(loaded(s)).state_dict(),
    "C23 averaged beside plain": lambda s: {"state_dict": OTHER, "state_dict_ema": under("module.", s)},
    "C25 dropout before the head": lambda s: renamed(s, "fc.", "fc.1."),
    "C48 DDP over torch.compile": lambda s: under("module._orig_mod.", s),
    "C48 half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "double precision": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "bfloat16": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "a scheduler": lambda s: {"model": s, "lr_scheduler": SCHEDULER, "seen": collections.Counter("ab")},
    "numbers and ids": lambda s: {"model": s, "lr": decimal.Decimal("0.1"), "id": uuid.uuid4()},
    "kinds and devices": lambda s: {"model": s, "on": torch.device("cpu"), "as": torch.half, "shape": torch.Size([1])},
    "random states": lambda s: {"model": s, "rng": [torch.get_rng_state(), np.random.RandomState(0).get_state()]},
    "MMPretrain": lambda s: {"meta": {}, "state_dict": renamed(under("backbone.", s), "backbone.fc", "head.fc")},
    "MoCo": lambda s: {"state_dict": under("module.encoder_q.", s) | under("module.encoder_k.", OTHER)},
    "a teacher": lambda s: {"student": under("backbone.", s), "teacher": under("backbone.", OTHER)},
    "of a list": lambda s: {"models": [under("net.", s)]},
    "FSDP of each layer": lambda s: renamed(s, "layer1.", "layer1._fsdp_wrapped_module."),
    "activation checkpointing": lambda s: renamed(s, "layer2.0.", "layer2.0._checkpoint_wrapped_module."),
    "DeepSpeed": lambda s: {"module": s, "buffer_names": [], "ds_version": "1"},
    "timm, EMA beside plain": lambda s: {"arch": "x", "state_dict": OTHER, "state_dict_ema": s, "e": Settings()},
    "torchvision's EMA": lambda s: {"model": OTHER, "model_ema": under("module.", s) | {"n_averaged": torch.tensor(5)}},
    "numbered layers": lambda s: under("encoder.", numbered(s)),
    "objects of training": lambda s: {"model": s, "lr": torch.optim.lr_scheduler.LinearLR(OPTIMIZER), "o": OPTIMIZER},
    "settings of a stranger": lambda s: {"state_dict": under("model.", s), "cfg": Settings(lr=0.1), "m": Meter("loss")},
    "settings in a dict of a stranger": lambda s: {"state_dict": s, "hyper_parameters": AttributeDict(lr=0.1)},
    "a GAN beside": lambda s: under("classifier.", s) | {"decoder.conv.weight": torch.ones(8, 4, 3, 3)},
}  # fmt: skip


def loaded(state: State) -> nn.Module:
    network = build("resnet8", num_classes=3)
    network.load_state_dict(state)
    return network


def rounding(name: str) -> float:
    return {"C48 half precision": 1e-3, "bfloat16": 1e-2}.get(name, 0)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_one_reader_of_all_commands(name: str, tmp_path: Path) -> None:
    """Without --model: the network is told by its tensors."""
    state, file = state_dict(), tmp_path / "w.pth"
    torch.save(CHECKPOINTS[name](state), file)
    notes: list[str] = []
    exported = inputs.resolve_checkpoint(ExportConfig(run=str(file)), notes.append).checkpoint
    begun = read_weights(TrainConfig(weights=str(file), model="resnet8"), Observer())
    assert (exported.info.model, len(exported.info.class_names), begun.info.classes) == ("resnet8", 3, 3)
    for tensors in (exported.model, begun.tensors):
        for key in ("conv1.weight", "layer3.0.bn2.bias", "fc.weight"):
            torch.testing.assert_close(tensors[key], state[key], atol=rounding(name), rtol=rounding(name))
    assert any("criterion.weight" in note for note in notes) == ("a loss" in name)
    assert any(note.endswith("--weights-key state_dict.") for note in notes) == ("beside plain" in name)
    network = open_network(EvaluateConfig(run=str(file)), lambda _: None)
    assert (network.kind, network.model) == ("weights", "resnet8")


def exported_from(file: Path, **options: Any) -> tuple[Any, list[str]]:
    notes: list[str] = []
    return inputs.resolve_checkpoint(ExportConfig(run=str(file), **options), notes.append).checkpoint.info, notes


def test_c15_preprocessing_that_came_with_the_weights(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "w.pth")
    info, notes = exported_from(tmp_path / "w.pth", image_size="64")
    assert (info.height, info.stored, info.mean) == (64, None, (0.485, 0.456, 0.406))
    assert any("assumed: --mean 0.485" in note for note in notes)
    info, notes = exported_from(tmp_path / "w.pth", image_size="64", resize="72", mean="0.5,0.5,0.5", std="0.2,0.2,0.2")
    assert (info.stored, info.mean, info.std) == ((72, 72), (0.5,) * 3, (0.2,) * 3)
    assert not any("assumed" in note for note in notes)
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.8, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["a", "b", "c"], "pretrained_cfg": settings}))
    info, notes = exported_from(tmp_path / "w.pth", image_size="64")
    assert (info.stored, info.mean, info.std, info.class_names) == ((80, 80), (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    assert any("resized bicubic; the file resizes them bilinearly" in note for note in notes)
    shutil.move(tmp_path / "w.pth", tmp_path / "pytorch_model.bin")  # the folder, as a repository was copied
    assert exported_from(tmp_path, image_size="64")[0] == info


def torchscript(file: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(file)


class Attack:
    """Runs code where it is loaded as a pickle may be."""

    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1 / 0",)


WRONG: dict[str, tuple[str, Callable[[Path, DigitFiles], object], str]] = {
    "C52 TorchScript": ("w.pt", lambda file, _: torchscript(file), "is a TorchScript program"),
    "C52 whole module": ("w.pth", lambda file, _: torch.save(loaded(state_dict()), file), "is a whole model"),
    "C52 HTML": ("w.pth", lambda file, _: file.write_text("<!DOCTYPE html>"), "is a web page"),
    "ONNX": ("m.onnx", lambda file, digits: shutil.copy(digits.normalized, file), "is an ONNX file"),
    "ONNX of another name": ("w.pth", lambda file, digits: shutil.copy(digits.normalized, file), "is an ONNX file"),
    "Git LFS": ("w.pth", lambda file, _: file.write_text("version https://git-lfs.github.com/spec/v1"), "of Git LFS"),
    "optimizer alone": ("w.pth", lambda file, _: torch.save({"optimizer": {}}, file), "contains no weights"),
    "index of shards": ("w.safetensors", lambda file, _: file.write_text('{"weight_map": {}}'), "is text (JSON)"),
    "empty": ("w.pth", lambda file, _: file.write_bytes(b""), "is empty"),
    "sharded": ("m-00001-of-00002.safetensors", lambda file, _: file.write_bytes(b"x"), "is one of several parts"),
    "pickle of Python": ("R-50.pkl", lambda file, _: file.write_bytes(pickle.dumps({"model": 1}, 2)), "did not write"),
    "an attack": ("w.pth", lambda file, _: torch.save(state_dict() | {"x": Attack()}, file), "could run code"),
    "quantized": (
        "w.pth",
        lambda file, _: torch.save({k: v.char() if v.dim() == 4 else v for k, v in state_dict().items()}, file),
        "conv1.weight is torch.int8",
    ),
    "diverged": (
        "w.pth",
        lambda file, _: torch.save({k: v / 0 for k, v in state_dict().items()}, file),
        "are not finite",
    ),
    "object of objects": ("w.pth", lambda file, _: torch.save({"net": Meter("x")}, file), "objects of tests.cases."),
    "picture": ("w.png", lambda file, _: Image.new("L", (9, 9)).save(file), "contains no weights"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_in_the_wrong_place_is_named(name: str, digit_files: DigitFiles, tmp_path: Path) -> None:
    file_name, make, words = WRONG[name]
    file = tmp_path / file_name
    make(file, digit_files)
    for reader in (
        lambda: inputs.resolve_checkpoint(ExportConfig(run=str(file)), print),
        lambda: inputs.resolve_checkpoint(ExportConfig(run=str(file), model="resnet8"), print),
        lambda: read_weights(TrainConfig(weights=str(file), model="resnet8"), Observer()),
    ):
        with pytest.raises(UserError) as refused:
            reader()
        assert words in str(refused.value)
        assert refused.value.remedy


def test_arrays_of_numpy_are_weights(tmp_path: Path) -> None:
    state = state_dict()
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in state.items()})
    info, _ = exported_from(tmp_path / "w.npz")
    assert (info.model, len(info.class_names)) == ("resnet8", 3)
    np.savez(tmp_path / "o.npz", a=np.array([Meter("x")], object))
    with pytest.raises(UserError, match=r"is a ZIP archive that torch\.save did not write"):
        exported_from(tmp_path / "o.npz")


def test_a_folder_of_parts_is_no_run(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"is no run, and has no model.safetensors and.*It has: .metadata, __0_0.distcp"
    ):
        exported_from(tmp_path)


def test_constants_of_pixels_from_0_to_255_are_refused(tmp_path: Path) -> None:
    """As MMPretrain has them; of a file beside the weights as of options."""
    torch.save(state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"--mean 123.675,116.28,103.53 is of pixels from 0 to 255.*Use --mean 0.485,"):
        exported_from(tmp_path / "w.pth", mean="123.675,116.28,103.53", std="1,1,1")
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [58.4, 57.1, 57.4]}))
    with pytest.raises(UserError, match=r"--std 58.4,57.1,57.4 is of pixels from 0 to 255"):
        exported_from(tmp_path / "w.pth")
    for settings, words in [
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "--std 0,0,0 must be one number above 0 for each of 3 channels"),
        ({"mean": [0.5], "std": [0.5]}, "--mean 0.5 must be one number"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match=words):
            exported_from(tmp_path / "w.pth")


def test_a_crop_that_is_not_of_the_center_is_told(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "w.pth")
    for mode, told in {"center": False, "squash": True, "border": True}.items():
        settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.95, "crop_mode": mode}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        _, notes = exported_from(tmp_path / "w.pth", image_size="64")
        assert any(f"cropped by the mode {mode}" in note for note in notes) == told


def test_files_that_are_not_onnx_are_named(trained: TrainResult, digit_images: list[Path], tmp_path: Path) -> None:
    safetensors.torch.save_file(state_dict(), tmp_path / "w.safetensors")
    torch.save(state_dict(), tmp_path / "w.pth")
    (tmp_path / "page.onnx").write_text("<html>")
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    for file, words in [
        (trained.run.best / "model.safetensors", "holds weights, it is no ONNX file. Export it: resnet-ops export"),
        (tmp_path / "w.safetensors", "holds weights"),
        (tmp_path / "w.pth", "holds weights"),
        (tmp_path / "page.onnx", "is a web page (HTML or XML), not an ONNX file"),
        (tmp_path / "pointer.onnx", "is a pointer of Git LFS, not an ONNX file"),
        (digit_images[0], "is an image (PNG), not an ONNX file"),
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(UserError) as refused:
            untrusted.scan(file)
        assert words in str(refused.value)


def test_a_run_means_its_exported_file(trained: TrainResult, tmp_path: Path) -> None:
    run, runs = tmp_path / "mine", tmp_path
    shutil.copytree(trained.run_dir, run, ignore=shutil.ignore_patterns("export"))

    def found(file: str | Path) -> Path:
        predicted = with_exported_file(PredictConfig(file=Path(file), images=(Path("x"),), runs_dir=runs)).file
        assert with_exported_file(ValidateConfig(file=Path(file), runs_dir=runs)).file == predicted
        return predicted

    with pytest.raises(UserError, match=r"Run mine has no exported file\. Export it: resnet-ops export mine --onnx"):
        found("mine")
    (run / "export").mkdir()
    (run / "export/model-int8.onnx").touch()
    assert found("mine") == found(run) == run / "export/model-int8.onnx"
    (run / "export/model-fp16.onnx").touch()
    with pytest.raises(UserError, match=r"several exported files: model-fp16.onnx, model-int8.onnx. Give one"):
        found("mine")
    (run / "export/model.onnx").touch()
    assert found("mine") == run / "export/model.onnx"
    with pytest.raises(UserError, match=r"no run called 'mime' in .*Did you mean mine"):
        found("mime")
    run.rename(tmp_path / "resnet20-v1.2")
    assert found("resnet20-v1.2") == tmp_path / "resnet20-v1.2/export/model.onnx"
    assert found("model.onnx") == Path("model.onnx")
    for path in ("model.onnx", "./mine.onnx", "folder/mine"):
        assert found(path) == Path(path)


@pytest.mark.parametrize("command", ["predict", "validate", "bench", "serve", "diagnose"])
def test_all_commands_say_which_runs_there_are(command: str, cli: Cli, trained: TrainResult) -> None:
    more = {"predict": ["x.png"], "diagnose": ["--outputs", "x.csv"]}.get(command, [])
    ended = cli(command, "trainde", *more, "--runs-dir", trained.run_dir.parent)
    assert ended.code == 2
    assert "Did you mean trained?" in ended.err


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_folder_of_other_images_is_measured_whole(precision: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(file)
    source, notes = open_source(str(tmp_path)), list[str]()
    images = inputs.select_validation_images(source, ("b", "a"), precision, False, notes.append)
    held_out = inputs.select_validation_images(source, ("b", "a"), precision, True, print)
    assert (len(images), len(held_out)) == (4 if precision == "int8" else 20, 4)
    assert any("4 of the 20 images" in note for note in notes) == (precision == "int8")
    assert images.labels.tolist().count(0) * 2 == len(images)


@pytest.mark.parametrize("images", [2, 33, 66, 193])
def test_int8_of_any_number_of_images(images: int, digit_files: DigitFiles) -> None:
    """The last batch of calibration is shorter, or all there is."""
    x = np.random.default_rng(0).standard_normal((images, 1, 8, 8)).astype(np.float32)
    network = onnx.load(digit_files.normalized)
    quantized, candidates = precision.to_int8(network, x, runtime.CPU)
    assert np.isfinite(runtime.create_session(quantized.SerializeToString(), runtime.CPU).run(x)).all()
    assert [candidate.chosen for candidate in candidates].count(True) == 1
