"""Checkpoints: one safetensors file each, with its own metadata and checksum.

The file's metadata holds a `CheckpointInfo` (network, classes, preprocessing, metrics) and a
SHA-256 of that and of every tensor, and nothing that differs when the same is trained again: no times, no
host. Tensors are named `model/...`, `optimizer/PARAMETER/...`,
`trained/...` where `model/` is their average over time, `scaler/...` of fp16, and, within an epoch, `workers/...`: a
row for each worker of what differs between them. Nothing is ever unpickled: a pickle can run code
when it is loaded.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from resnet_ops import files
from resnet_ops.architectures import Shortcut
from resnet_ops.class_metrics import ClassCount
from resnet_ops.config import Select
from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.files import write_atomically
from resnet_ops.models import build
from resnet_ops.run_records import BeganFrom, Epoch, HeldOutRecord, StoredSize
from resnet_ops.runs import Run, checkpoint_header
from resnet_ops.training.distributed import set_statistics, statistics
from resnet_ops.training.mixed_precision import MeasuredPrecision
from resnet_ops.training.trainer import Trainer

MODEL, OPTIMIZER, WORKERS, TRAINED, SCALER = "model/", "optimizer/", "workers/", "trained/", "scaler/"
STATISTICS = ("statistics", "averaged")  # of BatchNorm, in the network and in its average


class CheckpointInfo(BaseModel):
    """A network and its preprocessing: all that is needed to use the weights, with no other file."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    model: str
    shortcut: Shortcut | None
    class_names: tuple[str, ...]
    channels: int
    height: int
    width: int
    stored: StoredSize | None = None  # height and width of what these are cut from, as in `DataRecord`
    bit_depth: int | None = None  # of 16-bit images, as in `DataRecord`
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    data_fingerprint: str
    held_out: HeldOutRecord | None = None  # None where the data has validation images, and in older files
    fitted_on_all: bool = False  # the validation images were trained on, too: what is measured on them is no accuracy
    began_from: BeganFrom = None  # "" without pretrained weights, None in older files
    metrics: Epoch | None  # of the last epoch that was finished
    precision: MeasuredPrecision | None = None  # that they were measured in; None in older files
    step: int = 0  # steps into the epoch after it; 0 where these are the weights that the metrics are of
    select: Select | None = None  # what the best epoch is the best in; None where an earlier version wrote it: top1
    val_correct: str = ""  # hexadecimal: bit n tells whether validation image n is classified correctly
    val_classes: tuple[ClassCount, ...] = ()  # of the validation images

    @field_serializer("metrics")
    def _untimed(self, metrics: Epoch | None) -> dict[str, Any] | None:
        return metrics.timed_as(None).model_dump() if metrics else None

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.metrics.epoch if self.metrics else 0

    @property
    def file_name(self) -> str:
        """The name of its file; in the order of their names, checkpoints are in the order of time."""
        within = f"{self.epoch + 1:04d}-step-{self.step:06d}"
        return f"epoch-{within if self.step else format(self.epoch, '04d')}.safetensors"

    @property
    def validated(self) -> Epoch:
        """The metrics of these very weights.

        Raises:
            UserError: They were saved within an epoch, and never validated.
        """
        if self.metrics is None or self.step:
            raise UserError(
                f"These weights were saved during epoch {self.epoch + 1} and have not been validated.",
                "Use a checkpoint saved at the end of an epoch.",
            )
        return self.metrics

    @property
    def score(self) -> tuple[float, float]:
        """The key that the best of a run's weights are the largest of.

        Raises:
            UserError: See `validated`.
        """
        return self.validated.score(self.select or "top1")

    def build_network(self) -> nn.Module:
        """Build the network that the weights belong to."""
        return build(self.model, num_classes=len(self.class_names), in_channels=self.channels, shortcut=self.shortcut)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and is intact."""

    path: Path
    info: CheckpointInfo
    sha256: str
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    workers: dict[str, Tensor]
    trained: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Tensor] = field(default_factory=dict)


class PickledFileError(UserError):
    """A file is a pickle, which could run code when it is loaded."""


def save(path: Path, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint atomically.

    Raises:
        PausedError: The disk is full; nothing is left under `path` but what was there.
    """
    text = info.model_dump_json()
    metadata = {"resnet_ops": text, "sha256": _digest(text, tensors)}
    write_atomically(path, _with_sorted_metadata(serialize_tensors(tensors, metadata)))


def collect(trainer: Trainer) -> dict[str, Tensor]:
    """Copy to the CPU all that is needed to resume, under the names of the file.

    Collective: every worker must call it. Each gets the same, except BatchNorm's statistics in
    `model/`, which within an epoch are its own.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in trainer.network.named_parameters()}
    tensors = {MODEL + name: value for name, value in trainer.eval_network.state_dict().items()}
    if trainer.ema:
        tensors |= {TRAINED + name: value for name, value in trainer.network.state_dict().items()}
    for parameter, state in trainer.optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{names[parameter]}/{key}"] = value
    if trainer.scaler:
        tensors |= {SCALER + name: value for name, value in trainer.scaler.state().items()}
    if trainer.step:
        tensors[WORKERS + "totals"] = trainer.group.gather(trainer.totals)
        for key, network in zip(STATISTICS, trainer.networks, strict=False):
            tensors[WORKERS + key] = trainer.group.gather(statistics(network))
    # Copied, for training goes on while they are written.
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte of it.

    Raises:
        UserError: It is not there, is truncated or changed, or is not one of ours.
        PickledFileError: It is a pickle.
        PausedError: The disk or the bucket that it is on cannot be read now.
    """
    try:
        content = files.read(path)
    except FileNotFoundError:
        raise UserError(f"{path} cannot be read: it does not exist.", exit_code=WORK_FAILED) from None
    except OSError as error:  # the checkpoint may well be intact
        raise PausedError(f"{path} cannot be read: {error.strerror}.", "Check the disk.", WORK_FAILED) from None
    if is_pickle(content):
        raise PickledFileError(
            f"{path} is a pickle; loading it could run code, so it is refused.",
            "Use a safetensors checkpoint.",
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
    parts = (_below(prefix, tensors) for prefix in (MODEL, OPTIMIZER, WORKERS, TRAINED, SCALER))
    return Checkpoint(path, info, header["sha256"], *parts)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file says that it is a checkpoint of ours, be it intact or not."""
    return "resnet_ops" in checkpoint_header(path)


def is_pickle(content: bytes) -> bool:
    """Return whether a file is a pickle, or torch's archive of one, by its first bytes."""
    return content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@torch.no_grad()
def restore(checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Restore a worker from a checkpoint.

    With as many workers as then, each continues exactly as it would have. With more or fewer, the
    old ones' state is shared out: the mean of BatchNorm's statistics, an even part of the totals.
    """
    network, optimizer, group = trainer.network, trainer.optimizer, trainer.group
    trainer.eval_network.load_state_dict(checkpoint.model)
    if trainer.ema:
        # A trial that keeps an average may go on from another's weights that has none.
        network.load_state_dict(checkpoint.trained or checkpoint.model)
    parameters = dict(network.named_parameters())
    for name, value in checkpoint.optimizer.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        if value.shape == parameter.shape:
            # preserve_format: the buffer takes the memory layout of its parameter, as a fresh one would.
            optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)
        else:  # AdamW's count of steps, which only the fused one reads on the GPU
            on_device = optimizer.defaults["fused"] or optimizer.defaults["capturable"]
            optimizer.state[parameter][key] = value.to(parameter.device) if on_device else value
    if trainer.scaler and checkpoint.scaler:
        trainer.scaler.load_state(checkpoint.scaler)
    trainer.epoch, trainer.step = checkpoint.info.epoch, checkpoint.info.step
    if checkpoint.workers:
        totals = checkpoint.workers["totals"]
        same = len(totals) == group.size
        for key, each in zip(STATISTICS, trainer.networks, strict=False):
            rows = checkpoint.workers[key]
            set_statistics(each, rows[group.rank] if same else rows.double().mean(0))
        trainer.totals.copy_(totals[group.rank] if same else totals.sum(0) / group.size)


class CheckpointStore:
    """The checkpoints of a run: saves them, deletes all but the best and the last, finds the latest intact one.

    An epoch is saved in the order metrics.jsonl, which alone knows its time, checkpoint, best/: wherever a crash
    falls, `rewind` brings the three together again.
    """

    def __init__(self, run: Run, num_to_keep: int) -> None:
        self.run = run
        self.num_to_keep = num_to_keep
        self.scores: dict[Path, tuple[float, float]] = {}
        self.within: set[Path] = set()  # those taken within an epoch
        self.best: tuple[float, float] | None = None

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the latest intact checkpoint, and why each later one was set aside."""
        refused: list[str] = []
        latest: Checkpoint | None = None
        for folder in (self.run.checkpoints, self.run.best):
            files.remove_temporary(folder)
        for path in saved_checkpoints(self.run):
            try:
                checkpoint = read(path)
            except PausedError:  # out of reach is not damaged
                raise
            except UserError as error:
                refused.append(str(error))
                files.rename(path, path.with_suffix(".damaged"))
                continue
            latest = latest or checkpoint
            self._keep(path, checkpoint.info)
        return latest, refused

    def rewind(self, latest: Checkpoint | None) -> None:
        """Make metrics.jsonl and best/ agree with the checkpoint to resume from."""
        last = latest.info.metrics if latest else None
        known = {epoch.epoch: epoch for epoch in self.run.epochs()}
        done = [epoch for number, epoch in known.items() if last and number < last.epoch]
        self.run.write_epochs([*done, last.timed_as(known.get(last.epoch, last))] if last else [])
        with contextlib.suppress(UserError):  # nothing whole yet
            best, _ = read_best(self.run)
            candidates = [best, *([latest] if latest and not latest.info.step else [])]
            winner = max(candidates, key=lambda c: c.info.score)
            if winner.path != best_file(self.run):
                self._publish(winner.info, winner.model)
            self.best = winner.info.score

    def save(self, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
        """Save the tensors of `collect`, and delete checkpoints that are neither among the best nor the last."""
        path = self.run.checkpoints / info.file_name
        if not info.step:
            self.run.append_epoch(info.validated)
        save(path, info, tensors)
        self._keep(path, info)
        if not info.step and (self.best is None or self.scores[path] > self.best):
            self._publish(info, _below(MODEL, tensors))
            self.best = self.scores[path]
        best = sorted(self.scores, key=lambda p: self.scores[p], reverse=True)[: self.num_to_keep]
        for old in {*self.scores, *self.within} - {*best, path}:
            files.remove(old)
            self.scores.pop(old, None)
            self.within.discard(old)

    def _keep(self, path: Path, info: CheckpointInfo) -> None:
        if info.step:
            self.within.add(path)
        else:
            self.scores[path] = info.score

    def _publish(self, info: CheckpointInfo, model: dict[str, Tensor]) -> None:
        file = best_file(self.run)
        save(file, info, {MODEL + name: value for name, value in model.items()})
        write_atomically(file.with_suffix(".json"), info.model_dump_json(indent=2).encode() + b"\n")


def saved_checkpoints(run: Run) -> list[Path]:
    """Return the files in checkpoints/, the last one first."""
    checkpoints = [path for path in files.listed(run.checkpoints) if fnmatch(path.name, "epoch-*.safetensors")]
    return sorted(checkpoints, key=lambda path: path.name, reverse=True)


def best_file(run: Run) -> Path:
    """Return the file of the best weights."""
    return run.best / "model.safetensors"


def best_sha256(run: Run) -> str | None:
    """Return the checksum of the best weights; None where there are none, or they are damaged or out of reach."""
    with contextlib.suppress(UserError):
        return read(best_file(run)).sha256
    return None


def read_best(run: Run) -> tuple[Checkpoint, list[str]]:
    """Read the best weights, or, where they are damaged, the best intact checkpoint.

    Returns:
        The checkpoint, and why each better one was skipped.

    Raises:
        UserError: None is intact, or one is a pickle, which does not get there by accident.
    """
    refused: list[str] = []
    whole: list[Checkpoint] = []
    for path in (best_file(run), *(path for path in saved_checkpoints(run) if "-step-" not in path.name)):
        try:
            whole.append(read(path))
        except UserError as error:
            if isinstance(error, PickledFileError | PausedError):
                raise
            refused.append(str(error))
        if not refused:
            break
    if not whole and len(refused) == 1 and not run.epochs():
        raise UserError(
            f"Run {run.name} has not finished an epoch yet.",
            f"Train it further: {run.resume_command()}",
            exit_code=WORK_FAILED,
        )
    if not whole:
        raise UserError(
            f"Run {run.name} has no intact checkpoint. {' '.join(refused)}",
            "Train it again: resnet-ops train",
            exit_code=WORK_FAILED,
        )
    return max(whole, key=lambda checkpoint: checkpoint.info.score), refused


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _metadata(content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return metadata


def _with_sorted_metadata(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in order, which the library writes in a random one."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as the library aligns the tensors
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]))


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
