"""Spot notices, of a local stand-in for the clouds' metadata services."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from resnet_ops.orchestration import spot_notice
from tests.waiting import wait_for

ENDS = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class Service:
    """What both services answer, as AWS and Google describe it."""

    def __init__(self, aws: bool, google: bool) -> None:
        self.notice, service = threading.Event(), self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self) -> None:
                known = aws and self.path == "/latest/api/token"
                known = known and bool(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
                self.answer(200 if known else 404, "a-token")

            def do_GET(self) -> None:
                if aws and self.path == "/latest/meta-data/spot/instance-action":
                    if self.headers["X-aws-ec2-metadata-token"] != "a-token":
                        return self.answer(401)
                    if not service.notice.is_set():
                        return self.answer(404)
                    return self.answer(200, json.dumps({"action": "terminate", "time": "2030-01-02T03:04:05Z"}))
                path, _, query = self.path.partition("?")
                if google and path == "/computeMetadata/v1/instance/preempted":
                    if self.headers["Metadata-Flavor"] != "Google":
                        return self.answer(403)
                    if "wait_for_change=true" in query:
                        service.notice.wait(20)
                    return self.answer(200, "TRUE" if service.notice.is_set() else "FALSE")
                return self.answer(404)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    services = []
    monkeypatch.setattr(spot_notice, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which nothing may go through

    def start(aws: bool = False, google: bool = False) -> Service:
        services.append(service := Service(aws, google))
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{service.address}/")
        monkeypatch.setenv("GCE_METADATA_HOST", service.address)
        return service

    yield start
    for service in services:
        service.notice.set()
        service.server.shutdown()


@pytest.mark.parametrize("cloud", ["aws", "google"])
def test_a_notice_is_passed_on_once(cloud: str, serve: Callable[..., Service]) -> None:
    service, notices = serve(**{cloud: True}), list[Any]()
    with spot_notice.watch_for_notice(lambda *notice: notices.append(notice)):
        time.sleep(0.3)
        assert not notices
        service.notice.set()
        wait_for(lambda: notices, 5)
        time.sleep(0.2)
    ((name, ends),) = notices
    if cloud == "aws":
        assert (name, ends) == ("AWS", ENDS)
    else:
        assert name == "Google Cloud"
        assert 20 < (ends - datetime.now(UTC)).total_seconds() < 31


def test_a_machine_in_no_cloud_is_known_at_once(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    serve()  # which knows nothing
    assert spot_notice._find_cloud() is None
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("GCE_METADATA_HOST")
    began = time.monotonic()
    with spot_notice.watch_for_notice(lambda *_: None):
        assert time.monotonic() - began < 0.1
        wait_for(lambda: not [t for t in threading.enumerate() if t.name == "spot notice"], 5)
    assert time.monotonic() - began < 2


def test_it_can_be_disabled_as_for_awss_own_tools(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(aws=True)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert spot_notice._find_cloud() is None
