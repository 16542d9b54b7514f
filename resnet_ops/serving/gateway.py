"""The front of a service on one machine: an HTTP server that no client can keep from serving others.

It stands where Ray Serve's own proxy would: that one waits for slow clients, and has no limits to set.
"""

import asyncio
import contextlib
import gc
import resource
import socket
import time
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from resnet_ops.serving.app import CLASSIFY, build_app, refusal
from resnet_ops.serving.connections import IDLE_S, Connection, ConnectionLimiter
from resnet_ops.serving.groups import Groups
from resnet_ops.serving.limits import Refusal, Served, ServiceLimits
from resnet_ops.serving.location import listen
from resnet_ops.serving.service import InferenceService

CLOSE_S = 2  # for the last answers to leave
BACKLOG = 512
SEND_BYTES = 64 * 1024  # a kernel would take megabytes of answers that the client does not read
FILES = 1024  # that a process of Ray has open, and connections between two sweeps
POLL_S = 0.05


class Gateway:
    """A server; listens from when it is created, on a running event loop.

    Args:
        service: What it serves.
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, service: InferenceService, host: str, port: int) -> None:
        self._metrics = service.metrics
        self._app = build_app(service)
        self._stopping = False
        self._unanswered = 0
        most = _allowed_connections(service.limits)
        limiter = ConnectionLimiter(most, lambda reason: service.metrics.cut[reason].inc())
        service.metrics.connections.set_function(lambda: len(limiter.open))
        self._server = uvicorn.Server(
            uvicorn.Config(
                self,
                http=type("LimitedConnection", (Connection,), {"limiter": limiter}),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # requests are private
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=int(2 * IDLE_S),  # the limiter closes it earlier
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        listener = listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # its connections inherit it
        listener.listen(BACKLOG)
        self.port: int = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve([listener]))
        self._sweeping = asyncio.create_task(limiter.sweep())

    async def stop(self, within_s: float) -> int:
        """Refuse new requests, answer the others, and close; return how many were not answered in time."""
        self._stopping = True
        deadline = time.monotonic() + within_s
        while self._unanswered and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        unanswered = self._unanswered
        self._server.should_exit = True
        await self._serving
        self._sweeping.cancel()
        return unanswered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: ASGI."""
        if self._stopping:
            await self._refuse_to_start(scope, receive, send)
            return
        self._unanswered += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._unanswered -= 1

    async def _refuse_to_start(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == CLASSIFY:
            self._metrics.requests["stopping"].inc()
        with contextlib.suppress(TimeoutError):  # closed before it has read all, the client would lose the answer
            async with asyncio.timeout(CLOSE_S / 2):
                while (await receive()).get("more_body"):
                    pass
        await refusal(Refusal("stopping", "the service is stopping; ask another one"))(scope, receive, send)


class GatewayActor:
    """A gateway as a Ray actor.

    Args:
        replicas: Serve's handle to them.
        served: The file that they compute.
        limits: Of connections and requests.
        host: Address to listen on.
        port: Port to listen on.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, replicas: Any, served: Served, limits: ServiceLimits, host: str, port: int
    ) -> None:
        self.gateway = Gateway(InferenceService(served, limits, Groups(replicas, limits).ask), host, port)
        gc.collect()
        gc.freeze()  # or all requests would wait for 0.2 s every few seconds, while it looks through all modules

    async def stop(self, within_s: float) -> int:
        """Stop the gateway."""
        return await self.gateway.stop(within_s)


def _allowed_connections(limits: ServiceLimits) -> int:
    """Return the number of connections that this process can have, after it has raised its limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limits.connections + FILES
    if soft != resource.RLIM_INFINITY and soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(hard, files)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        files = soft
    return max(1, files - FILES)
