"""What a replica does with an image: takes it in, decodes it, waits for others, has the network look at them all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_ops.data.decode import DecodeError, TooManyPixelsError, decode, read_header
from resnet_ops.export import runtime
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.metadata import ModelMetadata

# Pillow knows more, some of which it has other programs read, such as PostScript.
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF"}
RECEIVE_S = 30.0
BUSY, TIMED_OUT, TOO_LARGE, UNSUPPORTED, BAD = 503, 408, 413, 415, 400


class RefusedError(Exception):
    """Why a request is not answered: an HTTP status, and words for whoever sent it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class ServiceLimits:
    """What a replica takes on: requests in hand, bytes and pixels of an image; how it makes batches."""

    waiting: int
    upload_bytes: int
    pixels: int
    batch: int
    batch_wait_s: float


class InferenceService:
    """A file, loaded, and the requests that wait for it. All methods but `_decode` run on one event loop."""

    def __init__(self, name: str, classifier: Classifier, limits: ServiceLimits, threads: int) -> None:
        self.name, self.classifier, self.limits = name, classifier, limits
        self.waiting = 0
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._computer = ThreadPoolExecutor(1, "compute")
        self._batched = self._make_batches()

    @property
    def metadata(self) -> ModelMetadata:
        """What the file says of itself."""
        return self.classifier.metadata

    async def classify(
        self, body: AsyncIterator[bytes], headers: Mapping[str, str], top: int
    ) -> list[tuple[str, float]]:
        """The likeliest classes of an image that is being sent, and their probabilities.

        Raises:
            RefusedError: It is too large, too slow or no image, or too many wait already.
        """
        with self._in_hand():
            encoded = await self._receive(body, headers)
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoders, self._decode, encoded)
            return self.classifier.top(await self._batched(pixels), top)

    @contextlib.contextmanager
    def _in_hand(self) -> Iterator[None]:
        if self.waiting >= self.limits.waiting:
            raise RefusedError(BUSY, f"{self.waiting} requests are waiting already; try again in a second")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _receive(self, body: AsyncIterator[bytes], headers: Mapping[str, str]) -> bytes:
        limit = self.limits.upload_bytes
        if headers.get("content-type", "").startswith("multipart/"):
            raise RefusedError(UNSUPPORTED, "send the image itself, not a form: curl --data-binary @photo.jpg")
        announced = headers.get("content-length", "")
        got = bytearray()
        too_large = RefusedError(TOO_LARGE, f"an upload may have at most {limit / 1e6:g} MB")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        try:
            async with asyncio.timeout(RECEIVE_S):
                async for part in body:
                    got += part
                    if len(got) > limit:
                        raise too_large
        except TimeoutError:
            raise RefusedError(TIMED_OUT, f"the image did not arrive within {RECEIVE_S:.0f} seconds") from None
        return bytes(got)

    def _decode(self, encoded: bytes) -> np.ndarray:
        most = self.limits.pixels
        try:
            seen = read_header(encoded)
            if seen.format not in FORMATS:
                raise RefusedError(UNSUPPORTED, f"images of format {seen.format} are not accepted")
            if seen.height * seen.width > most:
                size = f"{seen.width:,} x {seen.height:,}"
                raise RefusedError(TOO_LARGE, f"an image may have at most {most:,} pixels; this one has {size}")
            return decode(encoded, self.classifier.frame)
        except TooManyPixelsError:
            raise RefusedError(TOO_LARGE, f"an image may have at most {most:,} pixels; this one has more") from None
        except DecodeError as error:
            raise RefusedError(BAD, f"the image cannot be decoded: {error}") from None

    def _make_batches(self) -> Callable[[np.ndarray], Coroutine[Any, Any, np.ndarray]]:
        from ray import serve

        async def look_at_all(pixels: list[np.ndarray]) -> list[np.ndarray]:
            loop = asyncio.get_running_loop()
            return list(await loop.run_in_executor(self._computer, self.classifier.classify, np.stack(pixels)))

        limits = self.limits
        batches = serve.batch(max_batch_size=limits.batch, batch_wait_timeout_s=limits.batch_wait_s)
        return batches(look_at_all)


def load(content: bytes, metadata: ModelMetadata, provider: str, threads: int) -> Classifier:
    """Load a file's content on 'cpu', 'cuda' or 'tensorrt'.

    Raises:
        UserError: As `runtime.choose_provider` and `runtime.load`.
    """
    return Classifier.of(metadata, runtime.load(content, runtime.choose_provider(provider), threads=threads))
