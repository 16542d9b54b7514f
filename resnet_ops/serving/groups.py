"""What a gateway sends to the replicas: requests in groups, since a message costs more than what it carries.

A group is a batch of the network: the busier the replicas are, the larger it is, and alone no request waits for others.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any

from resnet_ops.serving.limits import LARGE_BYTES, Answer, Received, Refusal, ServiceLimits

Future = asyncio.Future[Answer | Refusal | None]  # None: it is large
AHEAD = 2  # groups that a replica has: one is decoded while another is computed


class Groups:
    """Sends the requests that wait as one group as soon as a replica has room; use it on one event loop.

    Args:
        replicas: Serve's handle to them.
        limits: Of the service.
    """

    def __init__(self, replicas: Any, limits: ServiceLimits) -> None:
        self._replicas = replicas
        self._largest, self._most = limits.batch, AHEAD * limits.replicas
        self._waiting: deque[tuple[Received, Future]] = deque()
        self._sent: set[asyncio.Task[None]] = set()

    async def ask(self, request: Received) -> Answer | Refusal:
        """Return the answer to a request."""
        answer = None
        if len(request.body) <= LARGE_BYTES:
            grouped: Future = asyncio.get_running_loop().create_future()
            self._waiting.append((request, grouped))
            self._send()
            answer = await grouped
        if answer is None:  # it is large, and the others of a group would wait for it
            answer = await _reach(self._replicas.classify_large.remote(request))
        return answer

    def _send(self) -> None:
        while self._waiting and len(self._sent) < self._most:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._largest))]
            sent = asyncio.create_task(self._ask_group([each for each in group if not each[1].cancelled()]))
            self._sent.add(sent)
            sent.add_done_callback(self._finish)

    async def _ask_group(self, group: list[tuple[Received, Future]]) -> None:
        futures = [future for _, future in group]
        try:
            answers = await _reach(self._replicas.classify.remote([request for request, _ in group]))
        except Exception as error:
            for future in futures:
                if not future.cancelled():
                    future.set_exception(error)
            return
        if isinstance(answers, Refusal):
            answers = [answers] * len(group)
        for future, answer in zip(futures, answers, strict=True):
            if not future.cancelled():
                future.set_result(answer)

    def _finish(self, sent: asyncio.Task[None]) -> None:
        self._sent.discard(sent)
        self._send()


async def _reach(asked: Awaitable[Any]) -> Any:
    """Return what a replica answers, or why it does not."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException

    try:
        return await asked
    except RayTaskError as error:
        return Refusal("failed", f"the network failed: {type(error.cause).__name__}")
    except (RayError, RayServeException):
        return Refusal("lost", "the network was lost while it worked on this; try again")
