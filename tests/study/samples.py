"""Results of studies with chosen numbers."""

from collections.abc import Sequence
from typing import Any

from resnet_ops.run_records import DataRecord
from resnet_ops.study.results import Layer, Layers, Network, group_networks
from tests.reporting import samples

DATA = DataRecord(
    name="digits",
    fingerprint="0" * 64,
    class_names=tuple("0123456789"),
    train_images=1438,
    val_images=359,
    channels=1,
    height=8,
    width=8,
)


def layers(first: float, last: float, response: float = 1.0) -> Layers:
    """Return eleven layers whose gradients go from one norm to another, evenly in logarithms."""
    gradients = [first * (last / first) ** (i / 10) for i in range(11)]
    sample = tuple(
        Layer(
            name=f"layer{i}",
            response_std=response,
            response_rms=response,
            weight_gradient=gradient,
            response_gradient=gradient,
            of_shortcut=response / 2 if i % 2 else None,
        )
        for i, gradient in enumerate(gradients)
    )
    return Layers(initial=sample, trained=sample)


def network(model: str, train: float, val: float, seed: int = 0, **more: Any) -> Network:
    """Return a training that ended with these errors."""
    kind = "plain" if model.startswith("plain") else "resnet"
    fields: dict[str, Any] = {
        "model": model, "depth": int(model.removeprefix(kind)), "kind": kind, "seed": seed, "status": "finished",
        "shortcut": "A" if kind == "resnet" else None, "reason": "", "parameters": 1000, "seconds": 1.0,
        "train_error": train, "val_error": val, "best_val_error": val, "trial": "trials/001",
        "curve": tuple(samples.epochs([0.9, val])),
    }  # fmt: skip
    return Network(**fields | more)


def seeds(model: str, train: Sequence[float], val: Sequence[float], **more: Any) -> list[Network]:
    """Return trainings of one network from several seeds."""
    return [network(model, t, v, seed, **more) for seed, (t, v) in enumerate(zip(train, val, strict=True))]


DEGRADED = group_networks(
    [
        *seeds("plain20", [0.02, 0.03], [0.03, 0.04]),
        *seeds("plain56", [0.60, 0.70], [0.60, 0.65]),
        *seeds("resnet20", [0.010, 0.012], [0.02, 0.02]),
        *seeds("resnet56", [0.009, 0.013], [0.01, 0.03]),
    ]
)
