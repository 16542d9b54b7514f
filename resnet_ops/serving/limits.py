"""What gateways and replicas agree on: what is served, within which limits, and what is said beyond them."""

from dataclasses import dataclass
from typing import Literal, get_args

from resnet_ops.export.metadata import ModelMetadata

LARGE_BYTES = 1_000_000  # of a request; others do not wait for it

Reason = Literal["bad_request", "timeout", "too_large", "unsupported", "busy", "stopping", "lost", "failed"]
STATUS: dict[Reason, int] = {
    "bad_request": 400,
    "timeout": 408,
    "too_large": 413,
    "unsupported": 415,
    "busy": 503,
    "stopping": 503,
    "lost": 503,
    "failed": 500,
}
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Received:
    """A request that has arrived: its body and Content-Type, and the number of classes to name."""

    body: bytes
    content_type: str
    top: int


@dataclass(frozen=True)
class Refusal:
    """The reason of a refused request, in a word for statistics and in a sentence for the client."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Answer:
    """The most likely classes of an image; `batch` is the size of its batch, told to one image of each."""

    ranked: list[tuple[str, float]]
    batch: int | None


class RefusedError(Exception):
    """A request that is refused."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason, message)


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of a service: of what a replica is sent, and of what is received for all of them.

    Args:
        waiting: Requests in progress, received as a whole, in all.
        upload_bytes: Of a request.
        receive_s: In which a whole request has to arrive.
        connections: Open at a time.
        pixels: Of an image.
        replicas: Of the network.
        batch: Images, at most.
    """

    waiting: int
    upload_bytes: int
    receive_s: float
    connections: int
    pixels: int
    replicas: int
    batch: int


@dataclass(frozen=True)
class Served:
    """The served file: its name, its metadata, and ONNX Runtime's name of the provider that computes."""

    file: str
    metadata: ModelMetadata
    provider: str
