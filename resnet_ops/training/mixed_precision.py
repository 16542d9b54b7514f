"""The precision that a network computes in: what `--precision` means on a device, and that of a measurement."""

import contextlib
from typing import Literal, cast

import torch

MeasuredPrecision = Literal["fp32", "tf32", "fp16", "bf16"]
TENSOR_CORES, TF32 = (7, 0), (8, 0)  # the first compute capabilities that have them


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context of mixed precision where `--precision` asks for it."""
    chosen = mixed_precision(precision, device)
    if chosen == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if chosen == "bf16" else torch.float16)


def mixed_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision that `--precision` means on a device.

    On CPUs 'auto' is fp32: bf16 autocast trains at 0.7 of its speed there.
    """
    if precision in ("fp32", "bf16", "fp16"):
        return cast("Literal['fp32', 'bf16', 'fp16']", precision)
    if device.type == "cpu":
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "fp32"


def measured_precision(precision: str, device: torch.device) -> MeasuredPrecision:
    """Return the precision in which a network is validated: mixed, or fp32, which GPUs may round to TF32."""
    chosen = mixed_precision(precision, device)
    rounds = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    if chosen == "fp32" and device.type == "cuda" and rounds and torch.cuda.get_device_capability(device) >= TF32:
        return "tf32"
    return chosen
