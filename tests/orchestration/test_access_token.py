"""Tokens of clusters: files that others can read are refused, and no token goes to whoever just listens."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from resnet_ops.errors import UserError
from resnet_ops.orchestration import access_token, connect, job_client, local_state, ray_internals

STRANGER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without clusters or tokens of the user's."""
    for name in [name for name in os.environ if name.startswith("RAY_A")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def user_file(home: Path, mode: int) -> Path:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(exist_ok=True)
    file.write_text("the-token\n")
    file.chmod(mode)
    return file


def test_a_new_token_is_its_owners_alone_and_replaces_none(tmp_path: Path) -> None:
    before = os.umask(0)
    file = access_token.create(tmp_path)
    os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert access_token.read(file) == file.read_text()
    assert len(file.read_text()) == 64
    with pytest.raises(FileExistsError):  # nor is a link of another's followed
        access_token.create(tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602])
def test_a_token_that_others_can_read_or_change_is_refused(own_home: Path, mode: int) -> None:
    file = user_file(own_home, mode)
    with pytest.raises(UserError, match=rf"{file} can be read or changed.*mode 0{mode:o}.*chmod 600 {file}"):
        access_token.user_token()
    file.chmod(0o600)
    assert access_token.user_token() == "the-token"


class Listener(BaseHTTPRequestHandler):
    """Whoever listens: it keeps what it is sent and wants a token."""

    sent: list[str | None]

    def do_GET(self) -> None:
        """Answer as Ray does without a token."""
        self.sent.append(self.headers.get("Authorization"))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str | None]]]:
    Listener.sent = []
    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Listener.sent
    server.shutdown()
    server.server_close()


def test_a_token_goes_to_a_server_that_is_named_and_to_no_other(
    own_home: Path, listener: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, sent = listener
    user_file(own_home, 0o600)
    monkeypatch.setattr(job_client, "LOCAL", address)
    with pytest.raises(UserError, match=rf"requires a token, but none was sent.*--cluster {address}"):
        job_client.connect(None)
    assert set(sent) == {""}
    sent.clear()
    with pytest.raises(UserError):
        job_client.connect(address)
    assert set(sent) == {"Bearer the-token"}
    sent.clear()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(UserError):
        job_client.connect(None)
    assert set(sent) == {"Bearer the-token"}


@contextlib.contextmanager
def raylet(address: str, *become: str) -> Iterator[None]:
    """A process that looks like a node of the cluster at `address`."""
    code = f"exec -a raylet bash -c 'echo; read' --gcs-address={address}"
    process = subprocess.Popen([*become, "bash", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate()


@needs_root
def test_nodes_of_other_users_are_not_ours() -> None:
    with raylet("10.9.9.1:6379"), raylet("10.9.9.2:6379", *STRANGER):
        found = ray_internals.running_addresses()
    assert "10.9.9.1:6379" in found
    assert "10.9.9.2:6379" not in found


def test_auto_believes_no_file_that_anyone_can_write(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_internals, "running_addresses", set[str])
    monkeypatch.setenv("RAY_TMPDIR", str(own_home))
    (own_home / "ray").mkdir()
    (own_home / "ray" / "ray_current_cluster").write_text("10.9.9.9:6379")
    with pytest.raises(UserError, match="No Ray cluster of yours"):
        connect.resolve_address(connect.AUTO)
    monkeypatch.setattr(ray_internals, "running_addresses", lambda: {"10.0.0.1:6379"})
    assert connect.resolve_address(connect.AUTO) == "10.0.0.1:6379"
    both = {"10.0.0.1:6379", "10.0.0.2:6379"}
    monkeypatch.setattr(ray_internals, "running_addresses", lambda: set(both))
    with pytest.raises(UserError, match=r"Several Ray clusters.*10\.0\.0\.1:6379, 10\.0\.0\.2:6379"):
        connect.resolve_address(connect.AUTO)
    (own_home / "ray" / "ray_current_cluster").write_text("10.0.0.2:6379")  # of several of one's own, the latest
    assert connect.resolve_address(connect.AUTO) == "10.0.0.2:6379"


def test_a_named_loopback_stays_loopback() -> None:
    """Ray takes this machine's own address for it, where another user may listen on the same port."""
    assert connect.resolve_address("127.0.0.1:6379") == "127.0.0.1:6379"


@needs_root
def test_a_state_file_of_another_user_is_not_read(own_home: Path) -> None:
    file = local_state.state_file()
    file.parent.mkdir(parents=True)
    file.write_text('{"mark": "m", "folder": "/etc", "nodes": 1, "cpus_per_node": 1, "address": "10.9.9.9:6379"}')
    assert local_state.read_state() is not None
    os.chown(file, 65534, 65534)
    with pytest.raises(UserError, match="another user wrote it"):
        local_state.read_state()
    assert local_state.running_cluster() is None
