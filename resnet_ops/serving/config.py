"""What a service is: every option with its default, its limits and its one-line description, as in `config.py`."""

from typing import Annotated

from pydantic import Field

from resnet_ops.config import ConnectionConfig
from resnet_ops.export.config import LARGEST_BATCH, UseConfig
from resnet_ops.options import Positive


class ServeConfig(ConnectionConfig, UseConfig):
    """Which file is served, where, and within which limits."""

    host: Annotated[
        str, Field(min_length=1, description="Address to listen on; 0.0.0.0 lets other machines in, whoever they are.")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 for any that is free.")] = 8000
    batch: Annotated[int, Field(ge=1, le=LARGEST_BATCH, description="Most images that are computed at once.")] = 32
    batch_wait_ms: Annotated[
        float,
        Field(ge=0, le=60_000, allow_inf_nan=False, description="Milliseconds that an image waits for others to be "
              "computed with."),
    ] = 5.0  # fmt: skip
    replicas: Annotated[
        Positive, Field(description="Copies of the network, each with its share of the cores, or a GPU of its own.")
    ] = 1
    max_waiting: Annotated[
        Positive, Field(description="Requests that a replica has in hand at once; more are told to come again (503).")
    ] = 256
    max_upload_mb: Annotated[
        float, Field(gt=0, le=1024, allow_inf_nan=False, description="Megabytes that an image may have as it is sent.")
    ] = 10.0
    max_pixels: Annotated[
        int, Field(ge=1, le=178_956_970, description="Pixels that an image may have, by its header.")
    ] = 50_000_000
