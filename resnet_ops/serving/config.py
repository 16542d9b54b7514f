"""The options of `resnet-ops serve`, as fields of a config."""

from typing import Annotated

from resnet_ops.cluster_config import ConnectionConfig
from resnet_ops.config_base import Positive, option
from resnet_ops.export.config import LARGEST_BATCH, UseConfig


class ServeConfig(ConnectionConfig, UseConfig):
    """The options of a service: the file, the address, the limits, the cluster."""

    host: Annotated[
        str,
        option(
            "Address to listen on; 0.0.0.0 accepts requests from other machines, without authentication.",
            panel="Server",
            min_length=1,
        ),
    ] = "127.0.0.1"
    port: Annotated[int, option("Port to listen on; 0 for any free port.", panel="Server", ge=0, le=65535)] = 8000
    batch: Annotated[int, option("Maximum batch size of dynamic batching.", panel="Limits", ge=1, le=LARGEST_BATCH)] = (
        32
    )
    max_waiting: Annotated[
        Positive,
        option("Maximum queued requests per replica; more are rejected with status 503.", panel="Limits"),
    ] = 256
    max_connections: Annotated[
        Positive,
        option(
            "Maximum number of open connections; beyond it, one that has waited long for a request is closed.",
            panel="Limits",
        ),
    ] = 1000
    receive_timeout_s: Annotated[
        float,
        option("Seconds in which a whole request has to arrive.", panel="Limits", gt=0, le=3600, allow_inf_nan=False),
    ] = 30.0
    max_upload_mb: Annotated[
        float, option("Maximum size of a request in megabytes.", panel="Limits", gt=0, le=1024, allow_inf_nan=False)
    ] = 10.0
    max_pixels: Annotated[
        int, option("Maximum number of pixels of an image.", panel="Limits", ge=1, le=178_956_970)
    ] = 50_000_000
    replicas: Annotated[
        Positive,
        option("Number of replicas, each with its share of the CPU cores or a GPU of its own.", panel="Cluster"),
    ] = 1
