"""What Ray Serve makes copies of, on whatever machine: a service, and its paths."""

from typing import Any

from fastapi import FastAPI

from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.serving import app
from resnet_ops.serving.service import InferenceService, ServiceLimits, load


class Replica:
    """A service that is made where it runs.

    Args:
        content: A list of one reference to the file's bytes; outside of a list Serve would fetch it anew each time.
        metadata: What the file says of itself.
        name: The file's.
        provider: 'cpu', 'cuda' or 'tensorrt'.
        limits: What it takes on.
        threads: That decode, and that compute on a CPU.
    """

    def __init__(
        self, content: list[Any], metadata: ModelMetadata, name: str, provider: str, limits: ServiceLimits, threads: int
    ) -> None:
        import ray

        (reference,) = content
        self.service = InferenceService(name, load(ray.get(reference), metadata, provider, threads), limits, threads)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve's own name for it."""
        return app.build(self.service)
