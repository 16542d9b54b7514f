"""Find the file that `--weights` means: torchvision's or the Hub's, in their caches or downloaded, or a path.

Nothing is downloaded in silence, and what is in a cache needs no network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from resnet_ops import files
from resnet_ops.architectures import IMAGENET_BLOCKS, parse_name
from resnet_ops.config import HUB, IMAGENET_WEIGHTS
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.formatting import first_names
from resnet_ops.runs import Run
from resnet_ops.weights.weights_metadata import (
    CONFIG_NAME,
    WeightsMetadata,
    hash_in_name,
    timm_metadata,
    torchvision_metadata,
)

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that a repository has
GIVE_FILE = "Give the file of weights itself; parts of one have to be joined first."
EXAMPLE = "hf:timm/resnet50.a1_in1k"


@dataclass(frozen=True)
class LocatedWeights:
    """A file of weights, what it is called in messages, and what its publisher says of it."""

    path: Path
    origin: str
    metadata: WeightsMetadata | None = None


def locate(weights: str, model: str, warn: Callable[[str], None]) -> LocatedWeights | None:
    """Return the file of weights; None where it has to be a run.

    Args:
        weights: The value of `--weights`.
        model: The network.
        warn: Called before something is downloaded.

    Raises:
        UserError: There are no such weights, or they cannot be downloaded.
    """
    if weights == IMAGENET_WEIGHTS:
        return _of_torchvision(model, warn)
    if weights.startswith(HUB):
        return _of_hub(weights, warn)
    path = files.to_path(weights).expanduser()
    candidates = (path, *(path / name for name in HUB_FILES))  # a repository that was copied from elsewhere
    located = next((LocatedWeights(file, str(file)) for file in candidates if files.is_file(file)), None)
    if (
        located is None
        and "/" in weights
        and not files.is_remote(path)
        and path.is_dir()
        and not Run(path).record_file.exists()
    ):
        names = first_names(sorted(each.name for each in path.iterdir())) or "nothing"
        raise UserError(f"{path} is no run, and has no {' and no '.join(HUB_FILES)}. It has: {names}.", GIVE_FILE)
    return located


def _of_torchvision(model: str, warn: Callable[[str], None]) -> LocatedWeights:
    """Return torchvision's best weights of a network, from torch's cache or downloaded to it."""
    architecture = parse_name(model)
    if architecture.kind != "resnet" or architecture.family != "imagenet":
        nearest = min(IMAGENET_BLOCKS, key=lambda depth: abs(depth - architecture.depth))
        what = "a CIFAR network" if architecture.family == "cifar" else "no residual network"
        raise UserError(
            f"There are no ImageNet weights of {architecture.name}, {what}.",
            f"Use --model resnet{nearest}, or weights of {architecture.name}: a file or a run.",
        )
    import torch
    import torchvision.models

    weights = torchvision.models.get_model_weights(architecture.name).DEFAULT
    name = weights.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        warn(f"Downloading {weights.url} ({weights.meta['_file_size']:.0f} MB) to {path}")
        _download(weights.url, path)
    elif not files.sha256(path).startswith(hash_in_name(path)):
        raise UserError(
            f"{path} is not what torchvision published: its SHA-256 does not begin with {hash_in_name(path)}.",
            "Delete it; then it is downloaded again.",
        )
    return LocatedWeights(path, f"torchvision's {weights} ({name})", torchvision_metadata(weights))


def _download(url: str, path: Path) -> None:
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole, and its hash is that in its name.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_in_name(path), progress=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise UserError(
            f"{url} cannot be downloaded ({_reason(error)}).",
            f"Fetch it where there is a network, to {path} on this machine.",
            WORK_FAILED,
        ) from None


def _reason(error: Exception) -> str:
    """Return why a download failed, in words."""
    if isinstance(error, URLError) and not isinstance(error, HTTPError):  # which wraps what the socket met
        cause = error.reason
        return f"no connection: {(cause.strerror if isinstance(cause, OSError) else None) or cause}"
    return " ".join(str(error).split())[:200]


def _of_hub(weights: str, warn: Callable[[str], None]) -> LocatedWeights:
    """Return weights of the Hugging Face Hub, from its cache or downloaded to it."""
    repository, _, revision = weights.removeprefix(HUB).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"--weights {weights} names no repository.", f"Write it as hf:owner/name: {EXAMPLE}")
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ModuleNotFoundError:
        raise UserError(
            f"--weights {weights} needs the client of the Hugging Face Hub.", "pip install 'resnet-ops[hub]'"
        ) from None
    options: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    try:
        cached = [hub.try_to_load_from_cache(filename=name, **options) for name in HUB_FILES]
    except errors.HFValidationError as error:
        raise UserError(f"--weights {weights} names no repository: {error}", f"An example: {EXAMPLE}") from None
    file = next((path for path in cached if isinstance(path, str)), None)
    if file is None:
        warn(f"Downloading {weights} from {constants.ENDPOINT} to {constants.HF_HUB_CACHE}")
        file = _fetch_from_hub(weights, options)
    return LocatedWeights(
        Path(file), f"{weights} ({Path(file).name})", timm_metadata(Path(file).with_name(CONFIG_NAME))
    )


def _fetch_from_hub(weights: str, options: dict[str, Any]) -> str:
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    try:
        # First what there is: without a network this fails at once, where a download would be tried for half a minute.
        listed = hub.HfApi().model_info(**options).siblings or []
        names = {sibling.rfilename for sibling in listed}
        if (name := next((name for name in HUB_FILES if name in names), None)) is not None:
            if CONFIG_NAME in names:
                hub.hf_hub_download(filename=CONFIG_NAME, **options)
            return str(hub.hf_hub_download(filename=name, **options))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = "it is gated" if isinstance(error, errors.GatedRepoError) else "there is no such public repository"
        raise UserError(
            f"{weights} cannot be fetched: {reason}.",
            "Check its name; for a private or gated one, log in: hf auth login",
        ) from None
    except Exception as error:  # of whichever HTTP client it has
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{weights} is not in {constants.HF_HUB_CACHE}, and cannot be fetched from {constants.ENDPOINT} "
            f"({reason}).",
            f"Where there is a network, run: hf download {options['repo_id']}; then copy that folder here, or give "
            f"--weights the {HUB_FILES[0]} in it.",
            WORK_FAILED,
        ) from None
    raise UserError(
        f"{weights} has neither {' nor '.join(HUB_FILES)}.", f"Choose another repository, such as {EXAMPLE}."
    )
