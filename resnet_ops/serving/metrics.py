"""What a gateway counts for Prometheus. Labels have fixed values, so that no client makes new series."""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from resnet_ops.serving.limits import REASONS

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CUT = ("slow", "refused", "idle", "crowded", "unread")
OK, ABORTED = "ok", "aborted"
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        requests = Counter(
            "resnet_ops_requests",
            "Requests to classify an image, by outcome: ok, aborted by the client, or why they were refused.",
            ["outcome"],
            registry=self._registry,
        )
        cut = Counter(
            "resnet_ops_connections_cut",
            "Connections closed on clients: a request head too slow or too long, a refused body that went on, idle "
            "for too long, crowded out by new connections, or answers unread.",
            ["reason"],
            registry=self._registry,
        )
        self.requests = {outcome: requests.labels(outcome) for outcome in (OK, ABORTED, *REASONS)}
        self.cut = {reason: cut.labels(reason) for reason in CUT}
        self.latency = Histogram(
            "resnet_ops_request_seconds",
            "Seconds from when a request has arrived until its answer, of those answered ok.",
            buckets=LATENCY_S,
            registry=self._registry,
        )
        self.batch = Histogram(
            "resnet_ops_batch_images",
            "Images per batch; the sum is the number of images classified.",
            buckets=BATCH,
            registry=self._registry,
        )
        self.waiting = Gauge("resnet_ops_waiting", "Requests that wait for an answer.", registry=self._registry)
        self.receiving = Gauge("resnet_ops_receiving", "Requests that are arriving.", registry=self._registry)
        self.connections = Gauge("resnet_ops_connections", "Open connections.", registry=self._registry)

    def page(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)
