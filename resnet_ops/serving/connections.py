"""The connections of a gateway: none is kept by a client that is slow to ask, or slow to read answers.

Nor does one that sends requests without waiting for answers (pipelining, RFC 9112 sec. 9.3.2) keep others waiting.
uvicorn limits none of these, and no Python server limits all. How slowly a body may arrive, and all that depends on
what is asked, is in `service`.
"""

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0  # for a new connection to send the head of a request, or for the rest of a later head
IDLE_S = 75.0  # between requests; proxies keep connections for 60 s, and have to be the first to close them
DISCARD_S = 5.0  # for the rest of a body after its answer, or the client would lose the answer
DISCARD_BYTES = 1_000_000  # the same, of a client that is faster
UNREAD_S = 10.0  # for the client to read what was sent
HEAD_BYTES = 64 * 1024
PARSED_BYTES = 1024  # at a time: uvicorn would parse thousands of requests, and keep them, before it answers the first
SWEEP_S = 0.5
TOO_LONG = b'{"error": "the head of the request is too long"}'
REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(TOO_LONG), TOO_LONG)
)


class Phase(Enum):
    """The state of a connection, by what it waits for."""

    HEAD = auto()  # the head of a request
    BODY = auto()  # the rest of a request
    ANSWER = auto()  # us
    DISCARD = auto()  # the rest of a request that was answered
    IDLE = auto()  # a next request


LIMITS_S = {Phase.HEAD: HEAD_S, Phase.DISCARD: DISCARD_S, Phase.IDLE: IDLE_S}


class ConnectionLimiter:
    """Closes connections that wait for their client for too long, and where there are too many, the oldest that waits.

    That is one of the address that has most of them; a request that has arrived is always answered.

    Args:
        most: Connections open at a time.
        on_cut: Called with the reason for which a connection is closed.
    """

    def __init__(self, most: int, on_cut: Callable[[str], None]) -> None:
        self.most, self.on_cut = most, on_cut
        self.open: set[Connection] = set()
        self._unanswered: dict[str, dict[Connection, None]] = {}  # by address, those that wait longest first

    def add(self, connection: "Connection") -> None:
        """Add a new connection, in the place of another one if all are taken."""
        self.open.add(connection)
        self.wait(connection)
        if len(self.open) > self.most:
            crowd = max(self._unanswered.values(), key=len)
            self.cut(next(iter(crowd)), "crowded")

    def wait(self, connection: "Connection") -> None:
        """Note that a connection waits for its client from now on."""
        self.answer(connection)
        self._unanswered.setdefault(connection.address, {})[connection] = None

    def answer(self, connection: "Connection") -> None:
        """Note that a connection waits for us."""
        of_address = self._unanswered.get(connection.address, {})
        of_address.pop(connection, None)
        if not of_address:
            self._unanswered.pop(connection.address, None)

    def remove(self, connection: "Connection") -> None:
        """Forget a connection that was closed."""
        self.answer(connection)
        self.open.discard(connection)

    def cut(self, connection: "Connection", reason: str) -> None:
        """Close a connection at once."""
        self.remove(connection)
        self.on_cut(reason)
        connection.transport.abort()

    async def sweep(self) -> None:
        """Close what has waited too long, forever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in list(self.open):
                if reason := connection.overdue(now):
                    self.cut(connection, reason)


class ParserFlow(FlowControl):
    """A connection's flow that reads on only once all that was read is parsed.

    Args:
        transport: Of the connection.
        unparsed: What was read and is not parsed.
    """

    def __init__(self, transport: asyncio.Transport, unparsed: bytearray) -> None:
        super().__init__(transport)
        self._unparsed = unparsed

    def resume_reading(self) -> None:
        """Read on."""
        if not self._unparsed and not self._transport.is_closing():
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """A connection that tells a limiter what it waits for, and answers requests before it parses those that follow."""

    limiter: ClassVar[ConnectionLimiter]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin."""
        super().connection_made(transport)
        self.unparsed = bytearray()
        self.flow = ParserFlow(transport, self.unparsed)
        self.address = self.client[0] if self.client else ""
        self.phase, self.since = Phase.HEAD, time.monotonic()
        self.unread_since: float | None = None
        self.head_bytes = self.discarded_bytes = self.body_left = 0
        self.limiter.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.limiter.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, as far as it is its turn."""
        self.unparsed += data
        self._parse()

    def _parse(self) -> None:
        while self.unparsed and not self.transport.is_closing():
            if self.phase is Phase.ANSWER or self.pipeline:
                self.flow.pause_reading()
                break
            size = max(PARSED_BYTES, self.body_left)
            part = bytes(self.unparsed[:size])
            del self.unparsed[:size]
            self._parse_part(part)

    def _parse_part(self, part: bytes) -> None:
        """Parse a part; the callbacks below are the parser's."""
        in_head = self.phase in (Phase.HEAD, Phase.IDLE)
        super().data_received(part)
        if self.phase is Phase.DISCARD:
            self.discarded_bytes += len(part)
            if self.discarded_bytes > DISCARD_BYTES and not self.transport.is_closing():
                self.limiter.cut(self, "refused")
        if in_head and self.phase in (Phase.HEAD, Phase.IDLE):
            self.head_bytes += len(part)
            if self.head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.limiter.on_cut("slow")
                self.transport.write(REFUSAL)
                self.transport.close()

    def on_message_begin(self) -> None:
        """Note the first byte of a request."""
        super().on_message_begin()
        self._enter(Phase.HEAD)

    def on_headers_complete(self) -> None:
        """Note the end of a head."""
        super().on_headers_complete()
        self.head_bytes = self.discarded_bytes = 0
        self.body_left = int(dict(self.headers).get(b"content-length", 0))
        self._enter(Phase.BODY)

    def on_body(self, body: bytes) -> None:
        """Note a part of a body."""
        super().on_body(body)
        self.body_left -= len(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        super().on_message_complete()
        self._enter(Phase.IDLE if self.cycle.response_complete else Phase.ANSWER)

    def on_response_complete(self) -> None:
        """Note the end of an answer."""
        super().on_response_complete()
        if self.cycle.response_complete and self.phase in (Phase.BODY, Phase.ANSWER):
            self._enter(Phase.DISCARD if self.phase is Phase.BODY else Phase.IDLE)
        self._parse()
        self.flow.resume_reading()

    def overdue(self, now: float) -> str:
        """Return why the connection has to be closed, or ''."""
        is_unread = self.flow.write_paused or self.transport.is_closing()
        self.unread_since = (self.unread_since or now) if is_unread else None
        if self.unread_since and now - self.unread_since > UNREAD_S:
            return "unread"
        if self.phase not in LIMITS_S or self._is_asked or now - self.since <= LIMITS_S[self.phase]:
            return ""
        return "idle" if self.phase is Phase.IDLE else "slow"

    def _enter(self, phase: Phase) -> None:
        was, self.phase, self.since = self.phase, phase, time.monotonic()
        if phase is Phase.ANSWER:
            self.limiter.answer(self)
        elif phase is not Phase.BODY and was is not phase and not self._is_asked:
            self.limiter.wait(self)

    @property
    def _is_asked(self) -> bool:
        """Return whether an answer is due, perhaps to a request before the one that is arriving."""
        return self.cycle is not None and not self.cycle.response_complete
