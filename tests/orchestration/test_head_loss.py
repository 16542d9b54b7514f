"""The watch over a cluster's head: a gRPC server that can be silenced stands in for it."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from resnet_ops.orchestration import head_loss
from resnet_ops.orchestration.head_loss import HeadWatch, patience_s
from resnet_ops.orchestration.ray_internals import head_answers
from tests.waiting import wait_for


class Head(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers every call: with nothing, or with a refusal."""

    def __init__(self, port: int = 0, code: grpc.StatusCode | None = None) -> None:
        self.code = code
        self.server = grpc.server(ThreadPoolExecutor(2), handlers=(self,), options=[("grpc.so_reuseport", 0)])
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self.server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.code is not None:
            context.abort(self.code, "refused")
        return b""

    def stop(self) -> None:
        self.server.stop(None).wait()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "LOST_AFTER_S", 1.0)
    monkeypatch.setattr(head_loss, "POLL_INTERVAL_S", 0.1)
    monkeypatch.delenv(head_loss.RAYS_TIMEOUT, raising=False)


@pytest.fixture
def head() -> Iterator[Head]:
    started = Head()
    yield started
    started.stop()


def test_a_head_answers_also_when_it_refuses(head: Head) -> None:
    assert head_answers(head.address, 2)
    head.code = grpc.StatusCode.UNAUTHENTICATED
    assert head_answers(head.address, 2)
    head.stop()
    assert not head_answers(head.address, 2)


def test_one_that_hangs_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not head_answers(f"127.0.0.1:{silent.getsockname()[1]}", 0.3)
        assert time.monotonic() - began < 2


def test_a_loss_is_told_once_and_a_pause_is_not(short: None, head: Head) -> None:
    lost = list[float]()
    watch = HeadWatch(head.address, lambda: lost.append(time.monotonic()))
    with watch.watching():
        time.sleep(0.3)
        head.stop()
        time.sleep(0.3)
        again = Head(head.port)
        time.sleep(1.3)
        assert not lost
        again.stop()
        stopped = time.monotonic()
        wait_for(lambda: lost, 10)
        assert watch.lost
        time.sleep(0.5)
    assert len(lost) == 1
    assert 0.6 < lost[0] - stopped < 3


def test_a_head_that_never_answered_is_not_lost(short: None) -> None:
    lost = threading.Event()
    with HeadWatch("127.0.0.1:1", lost.set).watching():
        assert not lost.wait(1.2)


def test_a_head_that_is_expected_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(head_loss.RAYS_TIMEOUT, raising=False)
    usual = patience_s()
    for value, expected in {"600": 600 - head_loss.BEFORE_RAY_S, "5": usual, "soon": usual}.items():
        monkeypatch.setenv(head_loss.RAYS_TIMEOUT, value)
        assert patience_s() == expected
    assert usual < 10
