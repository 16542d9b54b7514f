"""A gateway on real sockets, its limits made short: what hostile clients cannot do to others, and how it stops."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from resnet_ops.export.classifier import Classifier
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.serving import connections, gateway, service
from resnet_ops.serving.gateway import Gateway
from resnet_ops.serving.limits import Answer, Received, Refusal, Served, ServiceLimits
from resnet_ops.serving.service import InferenceService
from tests.conftest import DigitFiles

LIMITS = ServiceLimits(
    waiting=2, upload_bytes=1_000_000, receive_s=2, connections=30, pixels=10_000, replicas=1, batch=8
)
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
IMAGE = POST % 5 + b"image"


@pytest.fixture(scope="module")
def metadata(digit_files: DigitFiles) -> ModelMetadata:
    return Classifier(digit_files.normalized, "cpu").metadata


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    for phase in connections.LIMITS_S:
        monkeypatch.setitem(connections.LIMITS_S, phase, 0.3)
    monkeypatch.setattr(connections, "UNREAD_S", 0.3)
    monkeypatch.setattr(service, "GRACE_S", 0.3)
    monkeypatch.setattr(gateway, "CLOSE_S", 1)


@dataclass
class Running:
    """A gateway whose network answers at once, or once `gate` is open."""

    gateway: Gateway
    port: int
    gate: asyncio.Event
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, sent: bytes = b"", address: str = "127.0.0.1") -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        self.writers.append(writer)
        writer.write(sent)
        return Client(reader, writer)

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        client = await self.connect(request)
        try:
            return await client.answer()
        finally:
            client.writer.close()

    async def metric(self, name: str, **labels: str) -> float:
        _, _, page = await self.ask(GET % b"/metrics")
        samples = [each for family in text_string_to_metric_families(page.decode()) for each in family.samples]
        (value,) = [each.value for each in samples if each.name == name and each.labels == labels]
        return value

    async def until(self, name: str, value: float, **labels: str) -> None:
        async with asyncio.timeout(10):
            while await self.metric(name, **labels) != value:
                await asyncio.sleep(0.02)


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def closed_after(self) -> float:
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                await self.reader.read()
        return time.monotonic() - start

    async def drip(self, byte: bytes) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop's, of a closed connection
            while not self.reader.at_eof():
                self.writer.write(byte)
                await self.writer.drain()
                await asyncio.sleep(0.02)


def attacked(
    metadata: ModelMetadata, scenario: Callable[[Running], Awaitable[None]], limits: ServiceLimits = LIMITS
) -> None:
    """Run a scenario against a gateway."""

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[Running]:
        gate = asyncio.Event()
        gate.set()

        async def answer(request: Received) -> Answer | Refusal:
            await gate.wait()
            return Answer([(request.body.decode()[:9], 1.0)] * request.top, 1)

        listening = Gateway(InferenceService(Served("model.onnx", metadata, "cpu"), limits, answer), "127.0.0.1", 0)
        found = Running(listening, listening.port, gate)
        try:
            yield found
        finally:
            gate.set()
            for writer in found.writers:
                writer.close()
            await listening.stop(5)

    async def run() -> None:
        async with running() as found:
            await scenario(found)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as Ray's actors
        runner.run(run())


def test_uploads_take_no_place_before_they_have_arrived(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        slow = [await running.connect(POST % 5 + b"imag") for _ in range(10)]  # five times the places
        await running.until("resnet_ops_receiving", 10)
        assert (await running.ask(IMAGE))[0] == 200
        running.gate.clear()
        for client in slow[:2]:
            client.writer.write(b"e")
        await running.until("resnet_ops_waiting", 2)
        status, headers, body = await running.ask(IMAGE)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "try again" in json.loads(body)["error"]
        assert (await running.ask(GET % b"/health"))[2] == b'{"status":"ok","waiting":2}'
        running.gate.set()
        for client in slow[:2]:
            assert (await client.answer())[0] == 200
        assert await running.metric("resnet_ops_requests_total", outcome="busy") == 1

    attacked(metadata, scenario)


def test_a_slow_upload_is_ended_and_told(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        slow = await running.connect(POST % 1000)
        dripping = asyncio.create_task(slow.drip(b"x"))  # 50 bytes a second
        status, _, body = await slow.answer()
        assert status == 408
        assert "did not arrive in time" in json.loads(body)["error"]
        assert await slow.closed_after() < 2  # or it would go on to send
        await dripping
        assert await running.metric("resnet_ops_requests_total", outcome="timeout") == 1
        steady = await running.connect(POST % 100_000)  # slower than the grace, faster than the least rate
        for _ in range(10):
            steady.writer.write(b"x" * 10_000)
            await asyncio.sleep(0.05)
        assert (await steady.answer())[0] == 200

    attacked(metadata, scenario)


def test_a_head_that_does_not_come_is_not_waited_for(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        silent, slow = await running.connect(), await running.connect(b"GET / HTTP/1.1\r\n")
        blank = await running.connect(GET % b"/health")
        await blank.answer()
        dripping = [asyncio.create_task(slow.drip(b"x")), asyncio.create_task(blank.drip(b"\r\n"))]
        assert max(await asyncio.gather(*(client.closed_after() for client in (silent, slow, blank)))) < 2
        for task in dripping:
            await task
        assert await running.metric("resnet_ops_connections_cut_total", reason="slow") == 2
        assert await running.metric("resnet_ops_connections_cut_total", reason="idle") == 1

    attacked(metadata, scenario)


def test_a_head_without_end_is_refused(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        endless = await running.connect(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                endless.writer.write(b"X-Header: " + b"y" * 5000 + b"\r\n")
                await endless.writer.drain()
                await asyncio.sleep(0)
        assert await running.metric("resnet_ops_connections_cut_total", reason="slow") == 1

    attacked(metadata, scenario)


def test_idle_connections_make_room_for_others_but_never_a_request_in_progress(
    metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    for phase in connections.LIMITS_S:
        monkeypatch.setitem(connections.LIMITS_S, phase, 60)

    async def scenario(running: Running) -> None:
        running.gate.clear()
        working = [await running.connect(IMAGE + more) for more in (b"", b"GET / HT")]
        neighbor = await running.connect(GET % b"/health", "127.0.0.2")
        assert (await neighbor.answer())[0] == 200
        crowd = [await running.connect() for _ in range(4 * LIMITS.connections)]
        assert (await running.ask(GET % b"/health"))[0] == 200
        assert await crowd[0].closed_after() < 1
        assert await running.metric("resnet_ops_connections") <= LIMITS.connections
        assert await running.metric("resnet_ops_connections_cut_total", reason="crowded") > 80
        neighbor.writer.write(GET % b"/health")  # older than all of the crowd, of an address that has one
        assert (await neighbor.answer())[0] == 200
        running.gate.set()
        for client in working:
            assert (await client.answer())[0] == 200

    attacked(metadata, scenario)


def test_who_does_not_read_answers_is_cut(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", running.port))
            deaf.sendall(GET % b"/openapi.json" * 1000)
            await running.until("resnet_ops_connections_cut_total", 1, reason="unread")
        assert (await running.ask(IMAGE))[0] == 200

    attacked(metadata, scenario)


def test_pipelined_requests_are_answered_in_order(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        running.gate.clear()
        bodies = [b"%05d" % index * size for index, size in enumerate((1, 1000, 1, 20_000, *[1] * 300))]
        client = await running.connect(b"".join(POST % len(body) + body for body in bodies) + GET % b"/health")
        await running.until("resnet_ops_waiting", 1)
        running.gate.set()
        for body in bodies:
            status, _, answer = await client.answer()
            assert (status, json.loads(answer)["top"][0]["class"]) == (200, body[:9].decode())
        assert (await client.answer())[2] == b'{"status":"ok","waiting":0}'
        chunk = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n0\r\n\r\n"
        client.writer.write(chunk % b"image" + chunk % b"other")
        for name in ("image", "other"):
            assert json.loads((await client.answer())[2])["top"][0]["class"] == name

    attacked(metadata, scenario)


def test_others_do_not_wait_for_requests_without_end(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        running.gate.clear()  # so that none of those that follow the first is answered
        start = time.monotonic()
        for _ in range(40):
            await running.connect(IMAGE + GET % b"/docs" * 7000)
        await running.until("resnet_ops_waiting", 40)
        assert time.monotonic() - start < 1  # not 2 or more: what it takes to parse all that has arrived

    attacked(metadata, scenario, replace(LIMITS, connections=100, waiting=100))


def test_an_aborted_upload_is_forgotten(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        for client in [await running.connect(POST % 5 + b"imag") for _ in range(10)]:
            client.writer.close()
        await running.until("resnet_ops_requests_total", 10, outcome="aborted")
        assert await running.metric("resnet_ops_receiving") == 0

    attacked(metadata, scenario)


def test_the_largest_upload_goes_when_memory_is_short(metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HELD_BYTES", 0)
    monkeypatch.setattr(service, "GRACE_S", 60)

    async def scenario(running: Running) -> None:
        largest = await running.connect(POST % 950_000 + b"x" * 900_000)
        small = await running.connect(POST % 5 + b"imag")
        await running.until("resnet_ops_receiving", 2)
        others = [await running.connect(POST % 700_000 + b"x" * 600_000) for _ in range(2)]
        status, _, body = await largest.answer()
        assert (status, "too much" in json.loads(body)["error"]) == (503, True)
        small.writer.write(b"e")
        assert (await small.answer())[0] == 200
        for other in others:
            other.writer.write(b"x" * 100_000)
            assert (await other.answer())[0] == 200

    attacked(metadata, scenario)


def test_clients_make_no_new_series(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        before = (await running.ask(GET % b"/metrics"))[2]
        for request in (GET % b"/x/y?z=1", b"BREW / HTTP/1.1\r\nHost: evil\r\n\r\n", IMAGE, POST % 0):
            await running.ask(request)
        after = (await running.ask(GET % b"/metrics"))[2]
        series = [
            {(each.name, *each.labels.items()) for family in text_string_to_metric_families(page.decode())
             for each in family.samples}
            for page in (before, after)
        ]  # fmt: skip
        assert series[0] == series[1]
        assert await running.metric("resnet_ops_requests_total", outcome="ok") == 2
        assert await running.metric("resnet_ops_request_seconds_count") == 2
        assert await running.metric("resnet_ops_batch_images_sum") == 2

    attacked(metadata, scenario)


def test_while_it_stops_it_answers_what_has_begun_and_refuses_the_rest(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        running.gate.clear()
        waiting = [await running.connect(IMAGE) for _ in range(2)]
        arriving, kept = await running.connect(POST % 5 + b"imag"), await running.connect(GET % b"/health")
        await kept.answer()
        await running.until("resnet_ops_waiting", 2)
        stopping = asyncio.create_task(running.gateway.stop(10))
        await asyncio.sleep(0.1)
        for request in (IMAGE, POST % 900_000 + b"x" * 900_000, GET % b"/health"):
            status, headers, body = await running.ask(request)
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            assert "stopping" in json.loads(body)["error"]
        kept.writer.write(IMAGE)
        assert (await kept.answer())[:1] == (503,)
        assert not stopping.done()
        running.gate.set()
        arriving.writer.write(b"e")
        for client in (*waiting, arriving):
            assert (await client.answer())[0] == 200
        assert await stopping == 0
        with pytest.raises(ConnectionError):
            await running.connect()

    attacked(metadata, scenario, replace(LIMITS, waiting=3))


def test_it_stops_in_time_and_says_what_was_not_answered(metadata: ModelMetadata) -> None:
    async def scenario(running: Running) -> None:
        running.gate.clear()
        waiting = await running.connect(IMAGE)
        await running.until("resnet_ops_waiting", 1)
        start = time.monotonic()
        assert await running.gateway.stop(0.2) == 1
        assert time.monotonic() - start < 3
        assert (await waiting.answer())[0] >= 500

    attacked(metadata, scenario)
