"""Reading of weights trained elsewhere: a state dict with torchvision's or timm's names becomes a `Checkpoint`.

Pickles are loaded with `weights_only`: one that contains more than tensors is refused.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from resnet_ops import files
from resnet_ops.config_base import parse_image_size
from resnet_ops.data.sources import stored_size
from resnet_ops.errors import UserError
from resnet_ops.export.config import ExportConfig
from resnet_ops.models import Architecture, Shortcut, build, parse_name
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo, is_pickle

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NESTED_KEYS = ("state_dict", "state_dict_ema", "model", "model_ema", "model_state", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # of DDP, torch.compile, Lightning


def read(path: Path, config: ExportConfig) -> Checkpoint:
    """Read weights and infer the number of classes, the channels and the shortcut of their network.

    Raises:
        UserError: They cannot be read, or do not belong to `config.model`.
    """
    assert config.model is not None
    architecture = parse_name(config.model)
    content = _content(path)
    tensors = _state_dict(_load(path, content))
    for name in ("conv1.weight", "fc.weight"):
        if name not in tensors or tensors[name].dim() != (4 if name[0] == "c" else 2):
            names = ", ".join(sorted(tensors)[:3]) or "none"
            raise UserError(
                f"{path} contains no {name} of a residual network.", f"It contains {len(tensors)} tensors: {names}..."
            )
    channels, classes = tensors["conv1.weight"].shape[1], tensors["fc.weight"].shape[0]
    if channels not in (1, 3):
        raise UserError(
            f"{path} belongs to a network for {channels}-channel images.", "Use weights for grey or RGB images."
        )
    info = _info(config, architecture, tensors, channels, classes)
    _check(path, tensors, build(info.model, num_classes=classes, in_channels=channels, shortcut=info.shortcut))
    return Checkpoint(path, info, hashlib.sha256(content).hexdigest(), tensors, {}, {})


def _content(path: Path) -> bytes:
    try:
        return files.read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _load(path: Path, content: bytes) -> Any:
    """Load safetensors or a pickle: a state dict, or a nest of dicts that contains one."""
    try:
        if not is_pickle(content):
            return parse_tensors(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is a pickle of more than tensors; loading it could run code, so it is refused.",
            "Save the state dict only, preferably as safetensors: safetensors.torch.save_file(model.state_dict(), "
            "FILE)",
        ) from None
    except (SafetensorError, RuntimeError, ValueError, KeyError, EOFError, OSError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is damaged, or contains no weights ({reason}).") from None
    except Exception as error:  # torch raises errors of any kind on damaged pickles
        raise UserError(f"{path} is damaged, or contains no weights ({type(error).__name__}).") from None


def _state_dict(content: Any) -> dict[str, Tensor]:
    """Extract the state dict: out of the dicts that trainers nest it in, without their prefixes, in float32."""
    for _ in range(len(NESTED_KEYS)):
        key = next((k for k in NESTED_KEYS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, dict):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return {name: v.detach().float() if v.is_floating_point() else v.detach() for name, v in tensors.items()}


def _check(path: Path, tensors: dict[str, Tensor], network: torch.nn.Module) -> None:
    """Check names and shapes against the network's, and add the counters that old files lack to `tensors`.

    Raises:
        UserError: They differ.
    """
    expected = network.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, value)
    architecture = getattr(network, "architecture", None)
    model = architecture.name if isinstance(architecture, Architecture) else "the network"
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        absent = f"{len(missing)} missing such as {missing[0]}" if missing else "none missing"
        raise UserError(
            f"{path} does not contain the weights of {model}: {absent}, {len(unexpected)} unexpected"
            + (f" such as {unexpected[0][:100]}." if unexpected else "."),
            "Check --model. Variants with other stems or blocks than the paper's are not supported.",
        )
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise UserError(
                f"{path} does not contain the weights of {model}: {name} has shape {tuple(tensors[name].shape)}, not "
                f"{tuple(value.shape)}.",
                "Check --model.",
            )


def _info(
    config: ExportConfig, architecture: Architecture, tensors: dict[str, Tensor], channels: int, classes: int
) -> CheckpointInfo:
    imagenet = architecture.family == "imagenet"
    height, width = parse_image_size(config.image_size or ("224" if imagenet else "32"))
    return CheckpointInfo(
        model=architecture.name,
        shortcut=_shortcut(architecture, tensors),
        class_names=_class_names(config.classes, classes),
        channels=channels,
        height=height,
        width=width,
        stored=stored_size((height, width)) if imagenet else None,
        mean=_numbers("mean", config.mean, channels, IMAGENET_MEAN),
        std=_numbers("std", config.std, channels, IMAGENET_STD),
        data="unknown",
        data_fingerprint="unknown",
        metrics=None,
    )


def _shortcut(architecture: Architecture, tensors: dict[str, Tensor]) -> Shortcut | None:
    if architecture.kind == "plain":
        return None
    if not any(".downsample." in name for name in tensors):
        return "A"
    return "C" if any(name.startswith("layer1.1.downsample.") for name in tensors) else "B"


def _class_names(file: Path | None, classes: int) -> tuple[str, ...]:
    if file is None:
        return tuple(str(number) for number in range(classes))
    try:
        names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"--classes {file} cannot be read: {reason}.") from None
    if len(names) != classes:
        raise UserError(
            f"--classes {file} has {len(names)} classes; the weights have {classes}.",
            "Write one class per line, in order.",
        )
    return names


def _numbers(name: str, typed: str | None, channels: int, default: tuple[float, ...]) -> tuple[float, ...]:
    if typed is None and channels != len(default):
        raise UserError(
            "The weights belong to a network for grey images, which have no standard mean and standard deviation.",
            "Give those used in training: --mean 0.5 --std 0.25",
        )
    numbers = tuple(float(number) for number in typed.split(",")) if typed else default
    if len(numbers) != channels or (name == "std" and min(numbers) <= 0):
        raise UserError(f"--{name} {typed} must be one number above 0 for each of {channels} channels.")
    return numbers
