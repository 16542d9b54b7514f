"""Requests in groups: how they are grouped, and what a lost replica costs; a real service is in test_service.py."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from resnet_ops.serving.groups import AHEAD, Groups
from resnet_ops.serving.limits import LARGE_BYTES, Answer, Received, Refusal, ServiceLimits

LIMITS = ServiceLimits(waiting=99, upload_bytes=10**7, receive_s=2, connections=30, pixels=10**7, replicas=1, batch=8)


class Messages:
    """A replica without Ray between; counts what it is sent."""

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self.sent: list[Any] = []
        self._answer = answer

    def remote(self, *content: Any) -> Awaitable[Any]:
        self.sent.append(*content)
        return self._answer(*content)


class Handle:
    def __init__(self, replica: Any) -> None:
        self.classify, self.classify_large = Messages(replica.classify), Messages(replica.classify_large)


class Slow:
    """Answers when told to; what begins with ! is large."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def classify(self, requests: list[Received]) -> list[Answer | None]:
        await self.gate.wait()
        bodies = [request.body.decode() for request in requests]
        return [None if body[0] == "!" else Answer([(body, 1.0)], None) for body in bodies]

    async def classify_large(self, request: Received) -> Answer:
        if len(request.body) > LARGE_BYTES + 1:
            raise ActorDiedError
        return Answer([("large", 1.0)], None)


def test_what_waits_goes_as_a_group_without_large_ones_and_those_who_have_gone() -> None:
    async def run() -> None:
        slow = Slow()
        handle = Handle(slow)
        groups = Groups(handle, LIMITS)
        bodies = [*map(str, range(AHEAD)), "!", *map(str, range(10, 21)), "gone"]
        asked = [asyncio.create_task(groups.ask(Received(body.encode(), "", 1))) for body in bodies]
        await asyncio.sleep(0)
        asked.pop().cancel()
        slow.gate.set()
        names = [answer.ranked[0][0] for answer in await asyncio.gather(*asked) if isinstance(answer, Answer)]
        assert names == ["large" if body == "!" else body for body in bodies[:-1]]
        assert [len(group) for group in handle.classify.sent] == [1] * AHEAD + [LIMITS.batch, 12 - LIMITS.batch]
        assert [request.body for request in handle.classify_large.sent] == [b"!"]

    asyncio.run(run())


def test_a_lost_replica_is_told_and_the_others_still_asked() -> None:
    async def run() -> None:
        slow = Slow()
        slow.gate.set()
        groups = Groups(Handle(slow), LIMITS)
        for body, expected in [(bytes(LARGE_BYTES + 2), "lost"), (bytes(LARGE_BYTES + 1), "large")]:
            answer = await groups.ask(Received(body, "", 1))
            assert expected == (answer.reason if isinstance(answer, Refusal) else answer.ranked[0][0])
        for _ in range(2 * AHEAD):
            with pytest.raises(UnicodeDecodeError):
                await groups.ask(Received(b"\xff", "", 1))

    asyncio.run(run())
