"""Weights that were trained elsewhere: their tensors under torchvision's names, and what is known of them.

`read` is the one reader of files that are not our checkpoints. `save` writes them as they are into a run's folder, so
that its workers, and its resumption, need nothing else: they read them by `read_saved`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from resnet_ops.architectures import Architecture, Shortcut, parse_name
from resnet_ops.errors import UserError
from resnet_ops.files import write_atomically
from resnet_ops.formatting import is_one_line, printable
from resnet_ops.run_records import PretrainedRecord
from resnet_ops.weights.file_kinds import load, read_content, safetensors_metadata
from resnet_ops.weights.identify import check_network, identify
from resnet_ops.weights.state_dict import find_state_dict
from resnet_ops.weights.weights_metadata import (
    IMAGENET_MEAN,
    WeightsMetadata,
    WeightsPreprocessing,
    assumed_preprocessing,
    find_metadata,
)

METADATA_KEY = "resnet_ops_weights"  # in the metadata of the files of `save`


class WeightsInfo(PretrainedRecord):
    """A network that was trained elsewhere.

    `classes` is the size of its head, 0 without one; `class_names` is () where it is not known which these are.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    model: str
    shortcut: Shortcut | None
    channels: Annotated[int, Field(ge=1, le=3)]
    classes: int
    class_names: tuple[str, ...] = ()
    preprocessing: WeightsPreprocessing | None = None

    @property
    def architecture(self) -> Architecture:
        """The network."""
        return parse_name(self.model)


@dataclass(frozen=True)
class PretrainedWeights:
    """The tensors of a network, named as torchvision's, what is known of it, and what the user should know.

    `unexplained` are the names of tensors beside these, under `key` or around it, that its answers may depend on.
    """

    info: WeightsInfo
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()
    key: str = ""


def read(
    path: Path, origin: str | None = None, metadata: WeightsMetadata | None = None, key: str | None = None
) -> PretrainedWeights:
    """Read a file of weights: torchvision's, timm's or Lightning's, or what `save` wrote.

    What a file says of itself in the form of `save` is its own word: network and number of classes are compared with
    its tensors, where it is from and what it was trained on are left out, and a note names the rest.

    Args:
        path: The file.
        origin: What it is called in messages; by default its path.
        metadata: Whatever is known of it already.
        key: The keys that it lies under, where it holds several.

    Raises:
        UserError: It is damaged, another kind of file, or of a network that is not ours.
    """
    content = read_content(path)
    digest, loaded = hashlib.sha256(content).hexdigest(), load(path, content)
    origin = origin or str(path)
    if (described := _described(path, content, loaded)) is not None:
        own = dict(described) | dict(PretrainedRecord(origin=origin)) | {"sha256": digest}
        note = f"{printable(origin)}: that it is {described.model}, its classes and its normalization are its own word."
        return PretrainedWeights(WeightsInfo(**own), loaded, (note,))
    state = find_state_dict(path, loaded, key)
    tensors = state.tensors
    architecture, shortcut = identify(path, tensors)
    channels = tensors["conv1.weight"].shape[1]
    if channels not in (1, 3):
        raise UserError(
            f"{path} belongs to a network for {channels}-channel images.", "Use weights for grey or RGB images."
        )
    check_network(path, tensors, architecture, shortcut, channels)
    metadata = metadata or find_metadata(path, digest) or WeightsMetadata()
    if metadata.network not in (None, architecture.name):
        raise UserError(
            f"{origin} has the tensors of {architecture.name}, but is {metadata.network}, which computes with "
            "them otherwise and is not supported.",
            f"Use weights of {architecture.name} itself.",
        )
    classes = len(tensors["fc.weight"]) if "fc.weight" in tensors else 0
    info = WeightsInfo(
        origin=origin,
        sha256=digest,
        model=architecture.name,
        shortcut=shortcut,
        channels=channels,
        classes=classes,
        class_names=metadata.class_names if len(metadata.class_names) == classes else (),
        # A CIFAR network has no usual constants: training then takes those of its own images.
        preprocessing=metadata.preprocessing
        or (assumed_preprocessing(channels) if architecture.family == "imagenet" else None),
    )
    return PretrainedWeights(info, tensors, tuple(state.notes), state.unexplained, state.key)


def _described(path: Path, content: bytes, tensors: dict[str, Tensor]) -> WeightsInfo | None:
    """Return what a file that `save` wrote, or another one in that form, says of itself; None of other files.

    Raises:
        UserError: Its tensors are not of such a network.
    """
    if METADATA_KEY not in (header := safetensors_metadata(content)):
        return None
    try:
        described = WeightsInfo.model_validate_json(header[METADATA_KEY])
    except ValidationError:
        raise UserError(f"{path} is damaged, or of another version of resnet-ops.") from None
    if described.architecture.depth > len(tensors):  # before it is built, which takes as long as it is deep
        raise UserError(f"{path} does not contain the weights of {described.model}: it has {len(tensors):,} tensors.")
    check_network(path, tensors, described.architecture, described.shortcut, described.channels)
    matrix, names = tensors.get(f"{described.architecture.head}.weight"), described.class_names
    if described.classes != (0 if matrix is None else len(matrix)) or len(names) not in (0, described.classes):
        raise UserError(
            f"{path} says that it has {described.classes:,} classes, and its head has not as many.",
            "Train again from the weights that it was made of.",
        )
    if (steps := described.preprocessing) is not None:
        channels = (described.channels, len(IMAGENET_MEAN))
        if len(steps.mean) not in channels or len(steps.std) != len(steps.mean) or min(steps.std) <= 0:
            raise UserError(f"{path} has no mean and deviation for each of {described.channels} channels.")
    if not all(name and is_one_line(name) for name in names):
        raise UserError(f"{path} has names of classes that are empty, or more than a line.")
    return described


def read_saved(path: Path, sha256: str | None = None) -> PretrainedWeights:
    """Read the weights in the folder of a run or a search, which `save` wrote there, and believe what they say.

    Args:
        path: The file.
        sha256: Their checksum by the record of the run, if it has one.

    Raises:
        UserError: It is another file.
    """
    content = read_content(path)
    tensors = load(path, content)
    described = _described(path, content, tensors)
    if described is None or sha256 not in (None, described.sha256):
        raise UserError(f"{path} are not the weights that this run began with.", "Start a new run.")
    return PretrainedWeights(described, tensors)


def save(path: Path, weights: PretrainedWeights) -> None:
    """Write weights so that `read_saved` returns the same.

    Raises:
        PausedError: The disk is full.
    """
    metadata = {METADATA_KEY: weights.info.model_dump_json()}
    write_atomically(path, serialize_tensors(weights.tensors, metadata))


def check_model(info: WeightsInfo, model: str, option: str = "--model") -> None:
    """Check that weights belong to a network.

    Raises:
        UserError: They belong to another; the message says to which.
    """
    requested = parse_name(model)
    own = info.architecture
    # Without shortcuts that have weights, a residual network's tensors are those of a plain one.
    alike = info.shortcut is None and (own.depth, own.family) == (requested.depth, requested.family)
    if requested != own and not alike:
        family = {"cifar": "a CIFAR network", "imagenet": "an ImageNet network"}
        families = f", {family[own.family]}, and {requested.name} is {family[requested.family]}" * (
            own.family != requested.family
        )
        raise UserError(
            f"{info.origin} has the weights of {own.name}, not of {requested.name}{families}.",
            f"Use {option} {own.name}, or weights of {requested.name}.",
        )
