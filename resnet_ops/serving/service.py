"""The work of a replica: receive images, decode them, and classify them in batches.

HTTP is in `app`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_ops.data.decode import DecodeError, TooManyPixelsError, decode, read_header
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.serving.request_body import HOW, BodyError, extract_image

# Pillow reads more formats, some of them with external programs, such as PostScript.
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF"}
RECEIVE_S = 30.0
BUSY, TIMED_OUT, TOO_LARGE, UNSUPPORTED, BAD = 503, 408, 413, 415, 400


class RefusedError(Exception):
    """A request that is refused, with an HTTP status and a reason for the client."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of a replica: requests in progress, bytes and pixels of an image, and of its batches."""

    waiting: int
    upload_bytes: int
    pixels: int
    batch: int
    batch_wait_s: float


class InferenceService:
    """A loaded file and the requests that wait for it. All methods but `_decode` run on one event loop.

    Args:
        name: The file's name.
        classifier: The loaded file.
        limits: Of requests and batches.
        threads: Number of threads that decode.
        computer: The one thread that computes, in which the file was loaded.
    """

    def __init__(
        self, name: str, classifier: Classifier, limits: ServiceLimits, threads: int, computer: ThreadPoolExecutor
    ) -> None:
        self.name, self.classifier, self.limits = name, classifier, limits
        self.waiting = 0
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._computer = computer
        self._classify_batched = self._batch_requests()

    @property
    def metadata(self) -> ModelMetadata:
        """Return the metadata of the file."""
        return self.classifier.metadata

    async def classify(
        self, body: AsyncIterator[bytes], headers: Mapping[str, str], top: int
    ) -> list[tuple[str, float]]:
        """Return the `top` most likely classes of an image that is being received, and their probabilities.

        Raises:
            RefusedError: It is too large, too slow or no image, or too many requests are waiting.
        """
        with self._count_request():
            content = await self._receive(body, headers)
            loop = asyncio.get_running_loop()
            content_type = headers.get("content-type", "")
            pixels = await loop.run_in_executor(self._decoders, self._decode, content, content_type)
            return self.classifier.top(await self._classify_batched(pixels), top)

    @contextlib.contextmanager
    def _count_request(self) -> Iterator[None]:
        if self.waiting >= self.limits.waiting:
            raise RefusedError(BUSY, f"{self.waiting} requests are waiting already; try again in a second")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _receive(self, body: AsyncIterator[bytes], headers: Mapping[str, str]) -> bytes:
        limit = self.limits.upload_bytes
        if (coding := headers.get("content-encoding", "identity")) != "identity":
            raise RefusedError(UNSUPPORTED, f"send the image without Content-Encoding {coding}")
        announced = headers.get("content-length", "")
        received = bytearray()
        too_large = RefusedError(TOO_LARGE, f"an upload may have at most {limit / 1e6:g} MB")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        try:
            async with asyncio.timeout(RECEIVE_S):
                async for part in body:
                    received += part
                    if len(received) > limit:
                        raise too_large
        except TimeoutError:
            raise RefusedError(TIMED_OUT, f"the image did not arrive within {RECEIVE_S:.0f} seconds") from None
        return bytes(received)

    def _decode(self, content: bytes, content_type: str) -> np.ndarray:
        limit = self.limits.pixels
        try:
            encoded = extract_image(content, content_type)
            header = read_header(encoded)
            if header.format not in FORMATS:
                raise RefusedError(UNSUPPORTED, f"images of format {header.format} are not accepted")
            if header.height * header.width > limit:
                size = f"{header.width:,} x {header.height:,}"
                raise RefusedError(TOO_LARGE, f"an image may have at most {limit:,} pixels; this one has {size}")
            return decode(encoded, self.classifier.crop)
        except TooManyPixelsError:
            raise RefusedError(TOO_LARGE, f"an image may have at most {limit:,} pixels; this one has more") from None
        except BodyError as error:
            raise RefusedError(BAD, str(error)) from None
        except DecodeError as error:
            raise RefusedError(BAD, f"the image cannot be decoded: {error}; {HOW}") from None

    def _batch_requests(self) -> Callable[[np.ndarray], Coroutine[Any, Any, np.ndarray]]:
        from ray import serve

        async def classify_batch(pixels: list[np.ndarray]) -> list[np.ndarray]:
            loop = asyncio.get_running_loop()
            return list(await loop.run_in_executor(self._computer, self.classifier.classify, np.stack(pixels)))

        limits = self.limits
        batched = serve.batch(max_batch_size=limits.batch, batch_wait_timeout_s=limits.batch_wait_s)
        return batched(classify_batch)
