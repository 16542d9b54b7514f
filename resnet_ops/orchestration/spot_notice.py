"""Notices of AWS and Google Cloud that this machine, a spot instance, is about to be taken away.

Both tell it by a metadata service that only the machine itself reaches, 2 minutes ahead (AWS) or 30 s (Google Cloud).
"""

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol
from urllib.parse import urlsplit

METADATA_SERVICE = "http://169.254.169.254"  # of both; the name that Google's has would be looked up for seconds
TIMEOUT_S = 0.8  # of the first answer, by which a machine is known to be in neither cloud
POLL_INTERVAL_S = 5.0  # as AWS recommends
LONG_POLL_S = 30  # Google's service answers when something changes, or after so long
GOOGLE_NOTICE_S = 30.0


class Cloud(Protocol):
    """The metadata service of a cloud."""

    name: str

    def is_here(self) -> bool:
        """Return whether this machine is in that cloud."""

    def ask(self) -> datetime | None:
        """Return when this machine will be taken away, or None; may wait for news."""


class Aws:
    """AWS's instance metadata service, version 2, at the address that AWS's own tools use."""

    name = "AWS"

    def __init__(self) -> None:
        self.base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA_SERVICE
        self.disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"

    def _token(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        return _request("PUT", self.base, "/latest/api/token", lifetime)

    def is_here(self) -> bool:
        """Return whether it gives a token."""
        return not self.disabled and bool(self._token())

    def ask(self) -> datetime | None:
        """Return the time of its spot interruption notice."""
        import json

        answer = _request(
            "GET", self.base, "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token()}
        )
        return datetime.fromisoformat(json.loads(answer)["time"]) if answer else None


class GoogleCloud:
    """Google Compute Engine's metadata server, at the address that Google's own tools use."""

    name = "Google Cloud"

    def __init__(self) -> None:
        host = os.environ.get("GCE_METADATA_HOST")
        self.base = f"http://{host}" if host else METADATA_SERVICE

    def _ask(self, query: str, timeout_s: float) -> str:
        path = f"/computeMetadata/v1/instance/preempted{query}"
        return _request("GET", self.base, path, {"Metadata-Flavor": "Google"}, timeout_s)

    def is_here(self) -> bool:
        """Return whether it knows preemptions."""
        return self._ask("", TIMEOUT_S) in ("TRUE", "FALSE")

    def ask(self) -> datetime | None:
        """Wait for a change, and return when a preemption will end the machine."""
        preempted = self._ask(f"?wait_for_change=true&timeout_sec={LONG_POLL_S}", LONG_POLL_S + TIMEOUT_S)
        return datetime.now(UTC) + timedelta(seconds=GOOGLE_NOTICE_S) if preempted == "TRUE" else None


def _request(method: str, base: str, path: str, headers: dict[str, str], timeout_s: float = TIMEOUT_S) -> str:
    """Return the text of a response, '' if there is none of status 200; through no proxy, whatever the environment."""
    address = urlsplit(base)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request(method, address.path.rstrip("/") + path, headers=headers)
        response = connection.getresponse()
        text = response.read(10_000).decode(errors="replace").strip()
    return text if response.status == 200 else ""


@contextlib.contextmanager
def watch_for_notice(on_notice: Callable[[str, datetime], None]) -> Iterator[None]:
    """Watch for a notice for the length of a `with` block, on a thread that ends where there is no such service.

    Args:
        on_notice: Called once, on that thread, with the cloud's name and the time of the machine's end.
    """
    done = threading.Event()
    threading.Thread(target=_watch, args=(on_notice, done), name="spot notice", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(on_notice: Callable[[str, datetime], None], done: threading.Event) -> None:
    cloud = _find_cloud()
    while cloud is not None and not done.is_set():
        began = time.monotonic()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            if (ends := cloud.ask()) is not None:
                if not done.is_set():
                    on_notice(cloud.name, ends)
                return
        done.wait(max(0.0, POLL_INTERVAL_S - (time.monotonic() - began)))


def _find_cloud() -> Cloud | None:
    clouds: tuple[Cloud, ...] = (Aws(), GoogleCloud())
    for cloud in clouds:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if cloud.is_here():
                return cloud
    return None
