"""Checkpoints: one safetensors file each, that says of itself what it is and whether it is whole.

The file's metadata holds a `CheckpointInfo` (network, classes, preprocessing, the epoch's
metrics) and a SHA-256 of that and of every tensor. Tensors are named `model/...` and
`optimizer/PARAMETER/...`. Nothing is ever unpickled: a pickle can run code when it is read.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from resnet_ops.errors import BAD_REQUEST, WORK_FAILED, UserError
from resnet_ops.models import ResNet, Shortcut, build
from resnet_ops.runs import Epoch, Run, write_atomically

MODEL, OPTIMIZER = "model/", "optimizer/"


class CheckpointInfo(BaseModel):
    """What a network is and how its images are prepared: enough to use it with no other file."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    model: str
    shortcut: Shortcut | None
    class_names: tuple[str, ...]
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    data_fingerprint: str
    metrics: Epoch

    def build_network(self) -> ResNet:
        """Build the network that the weights belong to."""
        return build(self.model, num_classes=len(self.class_names), in_channels=self.channels, shortcut=self.shortcut)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk and found whole."""

    path: Path
    info: CheckpointInfo
    sha256: str
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save(path: Path, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint atomically.

    Raises:
        PausedError: The disk is full; nothing is left under `path` but what was there.
    """
    text = info.model_dump_json()
    metadata = {"resnet_ops": text, "sha256": _digest(text, tensors)}
    write_atomically(path, serialize_tensors(tensors, metadata))


def collect(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy the weights and the optimizer's state to the CPU, under the names of the file."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    tensors = {MODEL + name: value for name, value in network.state_dict().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{names[parameter]}/{key}"] = value
    return {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte of it.

    Raises:
        UserError: It is not there, is a pickle, is truncated or changed, or is not one of ours.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", exit_code=WORK_FAILED) from None
    if content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise UserError(
            f"{path} is a pickle, which can run code when it is read, so it is refused.",
            "Checkpoints here are safetensors files.",
        )
    try:
        tensors = parse_tensors(content)
        header = _metadata(content)
        info = CheckpointInfo.model_validate_json(header["resnet_ops"])
    except (SafetensorError, ValidationError, KeyError, ValueError) as error:
        reason = "not a checkpoint of resnet-ops" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}).", exit_code=WORK_FAILED) from None
    if _digest(header["resnet_ops"], tensors) != header.get("sha256"):
        raise UserError(f"{path} is damaged (its checksum differs).", exit_code=WORK_FAILED)
    return Checkpoint(path, info, header["sha256"], _below(MODEL, tensors), _below(OPTIMIZER, tensors))


def restore(checkpoint: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state into place."""
    network.load_state_dict(checkpoint.model)
    parameters = dict(network.named_parameters())
    for name, value in checkpoint.optimizer.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        # preserve_format: the buffer takes the memory layout of its parameter, as a fresh one would.
        optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)


class Checkpoints:
    """The checkpoints of a run: writes them, forgets the lesser ones, finds the latest whole one.

    An epoch is saved in the order checkpoint, best/, metrics.jsonl: wherever a crash falls,
    `rewind` brings the three together again.
    """

    def __init__(self, run: Run, num_to_keep: int) -> None:
        self.run = run
        self.num_to_keep = num_to_keep
        self.scores: dict[Path, tuple[float, float]] = {}
        self.best: tuple[float, float] | None = None

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Find the last checkpoint that is whole, and say why each later one was set aside."""
        refused: list[str] = []
        latest: Checkpoint | None = None
        for path in saved(self.run):
            try:
                checkpoint = read(path)
            except UserError as error:
                refused.append(str(error))
                path.rename(path.with_suffix(".damaged"))
                continue
            latest = latest or checkpoint
            self.scores[path] = score(checkpoint.info.metrics)
        return latest, refused

    def rewind(self, latest: Checkpoint | None) -> None:
        """Make metrics.jsonl and best/ agree with the checkpoint to go on from."""
        done = [] if latest is None else [*self.run.epochs()[: latest.info.metrics.epoch - 1], latest.info.metrics]
        self.run.write_epochs(done)
        with contextlib.suppress(UserError):  # nothing whole yet
            found, _ = read_best(self.run)
            winner = max(filter(None, (found, latest)), key=lambda c: score(c.info.metrics))
            if winner.path != best_file(self.run):
                self._publish(winner.info, winner.model)
            self.best = score(winner.info.metrics)

    def save(self, info: CheckpointInfo, network: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Save an epoch, and delete what is neither among the best nor the last."""
        tensors = collect(network, optimizer)
        path = self.run.checkpoints / f"epoch-{info.metrics.epoch:04d}.safetensors"
        save(path, info, tensors)
        self.scores[path] = score(info.metrics)
        if self.best is None or self.scores[path] > self.best:
            self._publish(info, _below(MODEL, tensors))
            self.best = self.scores[path]
        best = sorted(self.scores, key=lambda p: self.scores[p], reverse=True)[: self.num_to_keep]
        for old in set(self.scores) - {*best, path}:
            old.unlink(missing_ok=True)
            del self.scores[old]
        return path

    def _publish(self, info: CheckpointInfo, model: dict[str, Tensor]) -> None:
        file = best_file(self.run)
        save(file, info, {MODEL + name: value for name, value in model.items()})
        write_atomically(file.with_suffix(".json"), info.model_dump_json(indent=2).encode() + b"\n")


def score(metrics: Epoch) -> tuple[float, float]:
    """What 'best' means: validation accuracy, then the smaller validation loss."""
    return metrics.val_accuracy, -metrics.val_loss


def saved(run: Run) -> list[Path]:
    """The files in checkpoints/, the last epoch first."""
    return sorted(run.checkpoints.glob("epoch-*.safetensors"), reverse=True)


def best_file(run: Run) -> Path:
    """Where the best weights lie."""
    return run.best / "model.safetensors"


def read_best(run: Run) -> tuple[Checkpoint, list[str]]:
    """Read the best weights, or, where they are damaged, the best whole checkpoint.

    Returns:
        The checkpoint, and why each better one was passed over.

    Raises:
        UserError: None is whole, or one is a pickle: that did not get there by accident.
    """
    refused: list[str] = []
    whole: list[Checkpoint] = []
    for path in (best_file(run), *saved(run)):
        try:
            whole.append(read(path))
        except UserError as error:
            if error.exit_code == BAD_REQUEST:
                raise
            refused.append(str(error))
        if not refused:
            break
    if not whole:
        raise UserError(
            f"Run {run.name} has no checkpoint that is whole. {' '.join(refused)}",
            "Train it again: resnet-ops train",
            exit_code=WORK_FAILED,
        )
    return max(whole, key=lambda checkpoint: score(checkpoint.info.metrics)), refused


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _metadata(content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return metadata


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
