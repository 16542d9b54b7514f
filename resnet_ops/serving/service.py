"""What a service does with a request: receives it, admits it once it has arrived, and asks for its answer.

HTTP is in `app`, the server in `gateway`, what answers in `replica`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from starlette.requests import ClientDisconnect

from resnet_ops.serving.limits import Answer, Received, Refusal, RefusedError, Served, ServiceLimits
from resnet_ops.serving.metrics import ABORTED, OK, Metrics

GRACE_S = 5.0  # before a request has to arrive at a rate
MIN_BYTES_PER_S = 1000
HELD_BYTES = 256_000_000  # of requests that are arriving, or wait for an answer
ANSWER_S = 60.0


class InferenceService:
    """The requests of one gateway; all of it runs on one event loop.

    Args:
        served: The file that answers.
        limits: Of requests.
        ask: Answers a request that has arrived.
    """

    def __init__(
        self, served: Served, limits: ServiceLimits, ask: Callable[[Received], Awaitable[Answer | Refusal]]
    ) -> None:
        self.served, self.limits = served, limits
        self.waiting = 0
        self.metrics = Metrics()
        self.metrics.waiting.set_function(lambda: self.waiting)
        self.metrics.receiving.set_function(lambda: len(self._uploads))
        self._ask = ask
        self._uploads: set[Upload] = set()
        self._held_bytes = 0

    async def classify(self, body: AsyncIterator[bytes], headers: Mapping[str, str], top: int) -> Answer:
        """Return the `top` most likely classes of the image in a request that is arriving.

        Raises:
            RefusedError: It is too large, too slow or no image, or too many requests are waiting.
            ClientDisconnect: The client has gone.
        """
        try:
            async with self._receive(body, headers) as content:
                started = time.monotonic()
                answer = await self._answer(Received(bytes(content), headers.get("content-type", ""), top))
        except RefusedError as error:
            self.metrics.requests[error.refusal.reason].inc()
            raise
        except ClientDisconnect:
            self.metrics.requests[ABORTED].inc()
            raise
        self.metrics.requests[OK].inc()
        self.metrics.latency.observe(time.monotonic() - started)
        if answer.batch:
            self.metrics.batch.observe(answer.batch)
        return answer

    @contextlib.asynccontextmanager
    async def _receive(self, body: AsyncIterator[bytes], headers: Mapping[str, str]) -> AsyncIterator[bytearray]:
        """Receive a request, which counts as held during the `with` block."""
        most = self.limits.upload_bytes
        if (coding := headers.get("content-encoding", "identity")) != "identity":
            raise RefusedError("unsupported", f"send the image without Content-Encoding {coding}")
        announced = headers.get("content-length", "")
        too_large = RefusedError("too_large", f"an upload may have at most {most / 1e6:g} MB (serve --max-upload-mb)")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        upload = Upload(self.limits.receive_s)
        self._uploads.add(upload)
        try:
            try:
                async with upload.timeout:
                    async for part in body:
                        upload.add(part)
                        self._held_bytes += len(part)
                        if len(upload.content) > most:
                            raise too_large
                        self._make_room()
            except TimeoutError:
                raise upload.refusal from None
            finally:
                self._uploads.remove(upload)
            yield upload.content
        finally:
            self._held_bytes -= len(upload.content)

    def _make_room(self) -> None:
        """Refuse the largest of the requests that are arriving, if too many bytes are held."""
        if self._held_bytes > max(HELD_BYTES, 2 * self.limits.upload_bytes):
            max(self._uploads, key=lambda upload: len(upload.content)).crowd_out()

    async def _answer(self, request: Received) -> Answer:
        with self._count_request():
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await self._ask(request)
            except TimeoutError:
                raise RefusedError("failed", f"the network did not answer within {ANSWER_S:.0f} seconds") from None
        if isinstance(answer, Refusal):
            raise RefusedError(answer.reason, answer.message)
        return answer

    @contextlib.contextmanager
    def _count_request(self) -> Iterator[None]:
        if self.waiting >= self.limits.waiting:
            raise RefusedError("busy", f"{self.waiting} requests are waiting already; try again in a second")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class Upload:
    """A request that is arriving; use it on the event loop.

    Args:
        receive_s: In which it has to arrive.
    """

    def __init__(self, receive_s: float) -> None:
        self.content = bytearray()
        self._receive_s = receive_s
        self._started = asyncio.get_running_loop().time()
        self._is_crowded_out = False
        self.timeout = asyncio.timeout_at(self._deadline())

    def add(self, part: bytes) -> None:
        """Add what has arrived, which gives the rest more time."""
        self.content += part
        if not self._is_crowded_out:
            self.timeout.reschedule(self._deadline())

    def crowd_out(self) -> None:
        """Receive no more."""
        if not self.timeout.expired():
            self._is_crowded_out = True
            self.timeout.reschedule(self._started)

    @property
    def refusal(self) -> RefusedError:
        """Return the reason for which it was not received."""
        if self._is_crowded_out:
            return RefusedError("busy", "too much is being uploaded; try again in a second")
        passed_s = asyncio.get_running_loop().time() - self._started
        return RefusedError("timeout", f"the request did not arrive in time: {len(self.content)} B in {passed_s:.0f} s")

    def _deadline(self) -> float:
        return self._started + min(self._receive_s, GRACE_S + len(self.content) / MIN_BYTES_PER_S)
