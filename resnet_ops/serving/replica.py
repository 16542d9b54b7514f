"""A copy of the network that Ray Serve places on any machine: decodes images, those of a group as a batch.

What it is sent was received and admitted by a `service`.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_ops.data.decode import DecodeError, TooManyPixelsError, decode, read_header
from resnet_ops.export import runtime
from resnet_ops.export.binding import open_for_batches
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.serving.limits import Answer, Received, Refusal, ServiceLimits
from resnet_ops.serving.request_body import HOW, BodyError, extract_image

# Pillow reads more formats, some of them with external programs, such as PostScript.
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF"}
LARGE_PIXELS = 2_000_000  # images that take so long to decode that others do not wait for them
MAX_LARGE = 32  # of them in progress in a replica
NICE = 10


class Replica:
    """The deployment class.

    Args:
        fetch: Returns the file's bytes. Serve would keep bytes in its own records, for every version of the deployment.
        metadata: The file's metadata.
        provider: 'cpu', 'cuda' or 'tensorrt'.
        limits: Of images and batches.
        threads: Number of threads that decode, and that compute on a CPU.
    """

    def __init__(
        self,
        fetch: Callable[[], bytes],
        metadata: ModelMetadata,
        provider: str,
        limits: ServiceLimits,
        threads: int,
    ) -> None:
        resolved = runtime.resolve_provider(provider)
        # One thread, since ONNX Runtime keeps CUDA graphs for the thread that captured them.
        self._computer = ThreadPoolExecutor(1, "compute")
        opening = self._computer.submit(open_for_batches, fetch(), resolved, metadata, limits.batch, threads)
        self.classifier = Classifier.from_session(metadata, opening.result())
        self.limits = limits
        self._large = 0
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._large_decoders = ThreadPoolExecutor(threads, "decode large", _yield_to_others)

    def provider(self) -> str:
        """Return ONNX Runtime's name of the provider that computes."""
        return self.classifier.session.provider

    async def classify(self, requests: list[Received]) -> list[Answer | Refusal | None]:
        """Return the most likely classes of the image in each request, or why it has none; None where it is large."""
        loop = asyncio.get_running_loop()
        reading = [loop.run_in_executor(self._decoders, self._read, request, LARGE_PIXELS) for request in requests]
        return await self._answer(requests, await asyncio.gather(*reading))

    async def classify_large(self, request: Received) -> Answer | Refusal | None:
        """Return the most likely classes of the image in a request, however large it is, or why it has none."""
        if self._large >= MAX_LARGE:
            return Refusal("busy", f"{self._large} large images are waiting already; try again in a second")
        self._large += 1
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._large_decoders, self._read, request, None)
        finally:
            self._large -= 1
        (answer,) = await self._answer([request], [pixels])
        return answer

    async def _answer(
        self, requests: list[Received], read: list[np.ndarray | Refusal | None]
    ) -> list[Answer | Refusal | None]:
        """Classify the images that were read from requests as one batch."""
        images = [each for each in read if isinstance(each, np.ndarray)]
        loop = asyncio.get_running_loop()
        computing = loop.run_in_executor(self._computer, self.classifier.classify, np.stack(images)) if images else None
        probabilities = iter(await computing if computing else ())
        sizes = itertools.chain([len(images)], itertools.repeat(None))
        return [
            Answer(self.classifier.top(next(probabilities), request.top), next(sizes))
            if isinstance(each, np.ndarray)
            else each
            for request, each in zip(requests, read, strict=True)
        ]

    def _read(self, request: Received, largest: int | None) -> np.ndarray | Refusal | None:
        """Return the pixels of the image in a request, or None if it has more than `largest`."""
        limit = self.limits.pixels
        try:
            encoded = extract_image(request.body, request.content_type)
            header = read_header(encoded)
        except TooManyPixelsError:
            return _too_many_pixels(limit, "more")
        except BodyError as error:
            return Refusal("bad_request", str(error))
        except DecodeError as error:
            return _cannot_be_decoded(error)
        if header.format not in FORMATS:
            return Refusal("unsupported", f"images of format {header.format} are not accepted")
        pixels = header.height * header.width
        if pixels > limit:
            return _too_many_pixels(limit, f"{header.width:,} x {header.height:,}")
        if largest is not None and pixels > largest:
            return None
        try:
            return decode(encoded, self.classifier.crop)
        except TooManyPixelsError:
            return _too_many_pixels(limit, "more")
        except DecodeError as error:
            return _cannot_be_decoded(error)


def _yield_to_others() -> None:
    """Lower the priority of this thread; only Linux has one for each thread."""
    if sys.platform == "linux":
        os.nice(NICE)


def _too_many_pixels(limit: int, size: str) -> Refusal:
    return Refusal("too_large", f"an image may have at most {limit:,} pixels; this one has {size}")


def _cannot_be_decoded(error: DecodeError) -> Refusal:
    return Refusal("bad_request", f"the image cannot be decoded: {error}; {HOW}")
