"""Find the weights of a residual network in what was loaded, by the shape of their names, whatever is around them.

Trainers nest state dicts in dicts of their own, and prefix names: DDP, torch.compile, Lightning, averages over time.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import first_names
from resnet_ops.weights.file_kinds import Unread

STEM = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")  # what every network of ours has under one prefix
# In names of weights that are an average over time, as words: 'semantic' is none.
AVERAGED = re.compile("(?<![a-z])(ema|averaged|swa)(?![a-z])", re.IGNORECASE)
TEACHERS = ("encoder_k", "teacher", "momentum")  # in names of those that self-supervised training does not hand on
# In names of losses, and of what else trainers keep of a training, likewise as words.
LOSS = re.compile("(?<![a-z])(loss|losses|criterion|criterions|criteria)(?![a-z])", re.IGNORECASE)
TRAINING = re.compile(
    "(?<![a-z])(optim[a-z]*|opt|[a-z]*sched[a-z]*|lr|epochs?|iter[a-z]*|steps?|best|acc[a-z]*|prec[a-z]*|top|scores?|"
    "metrics?|history|rng|random|callbacks?|loops?|args|cfg|config|hparams|hyper|shadow)(?![a-z])",
    re.IGNORECASE,
)
MAX_NESTING = 4
# What FSDP and activation checkpointing put around modules, in the middle of names.
WRAPPED = re.compile(r"_(?:fsdp|checkpoint)_wrapped_module\.")
# Of Sequential(*network.children()), as fastai and self-supervised training have it.
LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4", "9": "fc"}
MAX_NAMED = 3
CONVOLUTION = 4  # dimensions of its weights


@dataclass(frozen=True)
class StateDict:
    """The tensors of one network, named as torchvision's.

    Args:
        tensors: Float ones in float32. The head is `fc.weight` and `fc.bias`; without a head that fits, neither.
        key: The keys and the prefix that it was under, as `--weights-key` takes them.
        left_out: Names of tensors and fractions that belong to something else, but for those of a training.
        unexplained: Those of them that may be part of what computes the answers, as a BatchNorm after the head.
        others: The keys of other networks beside it, which could have been taken as well.
        head_without_bias: The name of the head's matrix, if there is no bias beside it; '' otherwise.
    """

    tensors: dict[str, Tensor]
    key: str
    left_out: tuple[str, ...]
    unexplained: tuple[str, ...]
    others: tuple[str, ...]
    head_without_bias: str

    @property
    def notes(self) -> list[str]:
        """Say which weights were taken of several, and what was left out."""
        notes = []
        if self.others:
            others = " or ".join(f"--weights-key {name}" for name in self.others if name)
            notes.append(f"Using the weights in {self.key or 'the file itself'}; others are there: {others}.")
        if self.left_out:
            names = first_names(self.left_out, MAX_NAMED)
            notes.append(f"Left out: {names}; whether answers depend on that is not known.")
        if self.head_without_bias:
            notes.append(f"Taken as the head, a linear layer without a bias: {self.head_without_bias[:100]}.")
        return notes


def find_state_dict(path: Path, content: Any, key: str | None = None) -> StateDict:
    """Return the network's tensors; of several networks the average over time, if there is one, or that of `key`.

    Raises:
        UserError: There are none, or none under `key`.
    """
    candidates = dict[str, tuple[Mapping[str, Tensor], str]]()
    elsewhere = dict[str, Tensor | float]()
    for keys, tensors_there, numbers in _dicts(content):
        prefixes = _prefixes(tensors_there)
        for prefix in prefixes:
            if (name := _joined(*keys, prefix.rstrip("."))) in candidates:
                raise UserError(f"{path} has two networks under {name!r}.", "Save the one that is meant alone.")
            candidates[name] = tensors_there, prefix
        elsewhere |= {_joined(*keys, name): value for name, value in numbers.items()}
        if not prefixes:
            elsewhere |= {_joined(*keys, name): value for name, value in tensors_there.items()}
    if not candidates:
        raise _nothing_there(path, content)
    names = list(candidates)
    if key is not None:
        names = [name for name in names if name == key or name.startswith(key + ".")]
        if not names:
            known = ", ".join(name or "the file itself" for name in candidates)
            raise UserError(
                f"{path} has no weights under {key!r}.", f"{did_you_mean(key, candidates)} It has: {known}."
            )
    averaged = [name for name in names if AVERAGED.search(name)]
    plain = [name for name in names if name not in averaged and not any(word in name.lower() for word in TEACHERS)]
    chosen = (averaged or plain or names)[0]
    beside, prefix = candidates[chosen]
    for name, value in beside.items():
        # A view repeats what is stored: a small file can mean more than there is memory.
        if value.layout != torch.strided or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{path} has no plain values for {name[:100]}.", "Save it as a contiguous tensor.")
    own, others, head = _network_tensors(beside, prefix)
    for name, value in own.items():  # others need scales, which only who quantized them knows
        is_usual = not value.is_quantized and value.is_floating_point() and value.itemsize > 1
        if not is_usual and not name.endswith("num_batches_tracked"):
            raise UserError(
                f"{path}: {name[:100]} is {value.dtype}, not floating-point numbers of 16 bits or more.",
                "Give the weights as they were before they were quantized.",
            )
        if not value.isfinite().all():
            raise UserError(
                f"{path}: {name[:100]} has values that are not finite.", "Give weights of an earlier epoch."
            )
    other_prefixes = tuple(p for there, p in candidates.values() if there is beside and p not in ("", prefix))
    left_out = [name for name in sorted(others) if not name.startswith(other_prefixes)]
    elsewhere = {n: v for n, v in sorted(elsewhere.items()) if not _is_named(n, chosen, TRAINING, AVERAGED, LOSS)}
    # Counters are numbers without a shape. What is outside of the network may be a loss, a decoder, a projection: it
    # counts if it could take what the network gives, or give what it takes, until the user names the network alone.
    computing = [name for name in left_out if others[name].is_floating_point() or others[name].dim()]
    beside_it = [name for name in computing if not name.startswith(prefix) and not _is_named(name, chosen, LOSS)]
    around = [name for name in beside_it if not head.startswith(prefix) or _fits(others[name], own)]
    # Numbers are of a training as often as not: they are only named.
    around += [name for name, value in elsewhere.items() if isinstance(value, Tensor) and _fits(value, own)]
    within = [name for name in computing if name.startswith(prefix)]
    return StateDict(
        _in_float32(own),
        chosen,
        (*left_out, *elsewhere),
        (*within, *(around if key != chosen else ())),
        tuple(name for name in names if name != chosen),
        head if "fc.weight" in own and head.removesuffix("weight") + "bias" not in beside else "",
    )


def _with_layers(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by names of layers, where the layers of a network are numbered."""
    prefixes = {match[1] for name in tensors if (match := re.fullmatch(r"((?:.*\.)?)4\.0\.conv1\.weight", name))}
    for name, value in tensors.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        number, _, rest = name.removeprefix(prefix or "").partition(".")
        yield f"{prefix}{LAYERS.get(number, number)}.{rest}" if prefix is not None and rest else name, value


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _dicts(
    content: Any, keys: tuple[str, ...] = (), around: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Tensor], Mapping[str, float]]]:
    """Yield the keys that lead to every dict, its tensors, and its fractions.

    What contains itself is searched once.
    """
    if any(content is outer for outer in around):
        return
    named = {WRAPPED.sub("", str(name)): value for name, value in _items(content) if isinstance(value, Tensor)}
    numbers = {str(name): value for name, value in _items(content) if isinstance(value, float)}
    yield keys, dict(_with_layers(named)), numbers
    if len(keys) < MAX_NESTING:
        for key, value in _items(content):
            yield from _dicts(value, (*keys, str(key)), (*around, content))


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of the residual networks in a dict."""
    stems = [name.removesuffix(STEM[0]) for name, v in tensors.items() if name.endswith(STEM[0]) and v.dim() == 4]
    return [p for p in stems if (not p or p.endswith(".")) and all(p + other in tensors for other in STEM)]


def _is_named(name: str, chosen: str, *words: re.Pattern[str]) -> bool:
    """Return whether one of the words is in a name, but for those keys that lead to the chosen network, too."""
    parts = [part for part in name.split(".") if part not in chosen.split(".")]
    return any(pattern.search(part) for pattern in words for part in parts)


def _fits(value: Tensor, own: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is one factor, or one of its sides is of the channels, features or classes of a network.

    Of a convolution the sides of its kernel are not.
    """
    sizes = {own["conv1.weight"].shape[1], *(own["fc.weight"].shape if "fc.weight" in own else ())}
    if value.numel() == 1:
        return value.is_floating_point()
    return not sizes.isdisjoint(value.shape if value.dim() < CONVOLUTION else value.shape[:2])


def _items(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values of a dict or a list, with arrays of NumPy as tensors; nothing of anything else."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, list | tuple):
        pairs = enumerate(content)
    for key, value in pairs:
        is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
        yield key, torch.from_numpy(value) if is_array else value


def _network_tensors(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Return the network's tensors without their prefix, with the head as `fc`, the others, and the head's name."""
    own, others = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in tensors.items():
        rest = name.removeprefix(prefix)
        part = rest.partition(".")[0]
        if name.startswith(prefix) and (part in ("conv1", "bn1") or part.startswith("layer")):
            own[rest] = value
        else:
            others[name] = value
    features = max(value.shape[0] for name, value in own.items() if value.dim() == 1 and name.startswith("layer"))
    head = _find_head(others, prefix, features)
    if head is not None:
        own["fc.weight"] = others.pop(head)
        bias = others.pop(head.removesuffix("weight") + "bias", None)
        own["fc.bias"] = own["fc.weight"].new_zeros(len(own["fc.weight"])) if bias is None else bias
    return own, others, head or ""


def _in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in float32, since safetensors does not write views of one memory; counters stay integers."""
    floats = {name: v.detach().float() if v.is_floating_point() else v.detach() for name, v in tensors.items()}
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in floats.items()}


def _find_head(tensors: Mapping[str, Tensor], prefix: str, features: int) -> str | None:
    """Return the name of the head's matrix: `fc`, or a lone one below it, or a lone one anywhere, of as many inputs.

    Dropout before it, as in Sequential(Dropout, Linear), changes nothing once training is over.
    """
    matrices = [name for name, v in tensors.items() if name.endswith("weight") and v.dim() == 2]
    below = [name for name in matrices if name.startswith((prefix + "fc.", prefix + "head.", prefix + "classifier."))]
    for candidates in ([name for name in matrices if name == prefix + "fc.weight"], below, matrices):
        if len(candidates) == 1 and tensors[candidates[0]].shape[1] == features:
            return candidates[0]
        if candidates:
            return None
    return None


def _nothing_there(path: Path, content: Any) -> UserError:
    leaves = list(_leaves(content))
    names = sorted(name for name, value in leaves if isinstance(value, Tensor))
    if unread := sorted({value.of for _, value in leaves if isinstance(value, Unread)}):
        return UserError(
            f"{path} contains no weights beside objects of {first_names(unread, MAX_NAMED)}; loading those could run "
            "code, so they are left out.",
            "Save the tensors alone, on a machine that trusts it: torch.save(network.state_dict(), 'weights.pth')",
        )
    if any("embedder.embedder" in name for name in names):
        return UserError(
            f"{path} has the names of Hugging Face's transformers ({names[0]}...), not torchvision's or timm's.",
            "Use timm's weights of that network, such as --weights hf:timm/resnet50.a1_in1k.",
        )
    if any(name.endswith("conv1.0.weight") for name in names):
        return UserError(
            f"{path} belongs to a ResNet with a deep stem (of three convolutions, as timm's resnet50d), which is not "
            "supported.",
            "Use weights of the plain network, such as --weights hf:timm/resnet50.a1_in1k.",
        )
    listed = f"It contains {len(names)} tensors: {', '.join(names[:MAX_NAMED])}..." if names else "It has no tensors."
    return UserError(f"{path} contains no weights of a residual network: no {' and no '.join(STEM)}.", listed)


def _leaves(content: Any, around: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the tensors, and what was not read, with the last of the keys that lead to each."""
    if len(around) <= MAX_NESTING and not any(content is outer for outer in around):
        for name, value in _items(content):
            if isinstance(value, Tensor | Unread):
                yield str(name), value
            else:
                yield from _leaves(value, (*around, content))
