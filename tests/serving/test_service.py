"""A real service under load, with faulty requests, and stopped while it works: each answer is that of `predict`."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resnet_ops.serving.limits import LARGE_BYTES
from resnet_ops.serving.replica import LARGE_PIXELS
from tests.conftest import COMMAND, DigitFiles, Ended
from tests.json_keys import assert_keys
from tests.waiting import wait_for

Cli = Callable[..., Ended]
WAITING = 12


@dataclass(frozen=True)
class Service:
    process: "subprocess.Popen[str]"
    result: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.result["url"].rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            is_json = content and "json" in answer.headers["content-type"]
            return answer.status, json.loads(content) if is_json else content
        finally:
            connection.close()

    def classify(self, image: bytes, query: str = "", **headers: str) -> tuple[int, Any]:
        return self.ask("POST", f"/classify{query}", image, **headers)

    @contextlib.contextmanager
    def waiting(self, images: list[bytes]) -> Iterator[list[socket.socket]]:
        """Keep requests waiting for the network during a `with` block."""
        (replica,) = (pid for pid in below(self.process.pid) if b"ServeReplica" in command_line(pid))
        os.kill(replica, signal.SIGSTOP)
        try:
            sent = [self.send(image) for image in images]
            wait_for(lambda: self.ask("GET", "/health")[1]["waiting"] == len(images))
            yield sent
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(replica, signal.SIGCONT)

    def send(self, image: bytes) -> socket.socket:
        sending = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST /classify?top=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\nConnection: close\r\n\r\n"
        sending.sendall(head.encode() + image)
        return sending


def answer_of(sent: socket.socket) -> tuple[int, Any]:
    with sent, sent.makefile("rb") as file:
        head, _, content = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def started(file: Path, *options: object) -> Service:
    command = list(map(str, [*COMMAND, "serve", file, "--port", "0", "--json", *options]))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.stderr.read())
    return Service(process, json.loads(line))


@pytest.fixture(scope="module")
def service(digit_files: DigitFiles) -> Iterator[Service]:
    limits = ["--max-upload-mb", "1.5", "--max-pixels", "2300000", "--max-waiting", WAITING, "--batch", "8"]
    service = started(digit_files.normalized, *limits)
    assert_keys("serve", service.result)
    yield service
    service.process.terminate()
    service.process.wait(60)


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header says that it is this large, with hardly any pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def noise(side: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(file, "PNG")
    return file.getvalue()


def postscript() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "EPS")
    return file.getvalue()


def test_under_load_every_answer_is_that_of_predict(
    service: Service, cli: Cli, digit_files: DigitFiles, digit_images: list[Path], tmp_path: Path
) -> None:
    many_pixels, many_bytes = tmp_path / "pixels.png", tmp_path / "bytes.png"
    Image.open(digit_images[0]).resize((1501, 1500)).save(many_pixels)
    many_bytes.write_bytes(noise(640))
    assert LARGE_PIXELS < 1501 * 1500
    assert many_pixels.stat().st_size < LARGE_BYTES < many_bytes.stat().st_size
    images = [*digit_images, many_pixels, many_bytes]
    rows = cli("predict", digit_files.normalized, *images, "--top", 3, "--json").json["predictions"]
    faults = {b"": 400, b"not an image": 400, digit_images[0].read_bytes()[:-40]: 400, noise(720): 413}
    requests = [path.read_bytes() for path in images]
    for index, fault in enumerate(list(faults) * 5):
        requests.insert(index * 10, fault)
    with ThreadPoolExecutor(WAITING) as pool:
        answers = list(pool.map(lambda image: service.classify(image, "?top=3"), requests))
    expected = {path.read_bytes(): row["top"] for path, row in zip(images, rows, strict=True)}
    for image, (status, answer) in zip(requests, answers, strict=True):
        if image in faults:
            assert status == faults[image]
            assert answer["error"]
            continue
        assert status == 200, answer
        assert [one["class"] for one in answer["top"]] == [one["class"] for one in expected[image]]
        for one, same in zip(answer["top"], expected[image], strict=True):
            assert one["probability"] == pytest.approx(same["probability"], abs=1e-5)
        assert answer["model"] == "resnet8"
    assert len(answers) == 222


def test_what_is_wrong_is_refused_in_words(service: Service, digit_images: list[Path]) -> None:
    good = digit_images[0].read_bytes()
    for image, query, headers, expected, words in [
        (b"", "", {}, 400, "empty"),
        (b"not an image", "", {}, 400, "not an image"),
        (good[:-40], "", {}, 400, "cannot be decoded"),
        (good, "?top=0", {}, 422, "top: "),
        (good, "?top=many", {}, 422, "top: "),
        (good, "", {"content_type": "multipart/form-data; boundary=x"}, 400, "--data-binary"),
        (postscript(), "", {}, 415, "EPS"),
        (noise(720), "", {}, 413, "1.5 MB (serve --max-upload-mb)"),
        (png(2301, 1000), "", {}, 413, "2,300,000 pixels; this one has 2,301 x 1,000"),
        (png(60_000, 60_000), "", {}, 413, "2,300,000 pixels; this one has more"),
    ]:
        status, answer = service.classify(image, query, **headers)
        assert (status, list(answer)) == (expected, ["error"]), answer
        assert words in answer["error"]
    assert service.ask("GET", "/classify")[0] == 405
    status, answer = service.ask("GET", "/nowhere")
    assert status == 404
    assert all(each in answer["error"] for each in ("POST /classify", "GET /docs", "GET /openapi.json"))
    status, answer = service.classify(good, "?top=99")
    assert (status, len(answer["top"])) == (200, 10)


def test_an_upload_that_does_not_say_how_long_it_is_is_cut_off_too(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/classify", iter([bytes(400_000)] * 4), encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, "1.5 MB" in json.load(answer)["error"]) == (413, True)


def test_it_says_how_it_is_and_what_it_serves(service: Service, digit_files: DigitFiles) -> None:
    assert service.ask("GET", "/health") == (200, {"status": "ok", "waiting": 0})
    _, about = service.ask("GET", "/")
    assert about["classes"] == list(digit_files.checkpoint.info.class_names)
    assert about["val_accuracy"] == digit_files.checkpoint.info.validated.val_accuracy
    assert (about["file"], about["input"]["height"]) == ("normalized.onnx", 8)
    status, page = service.ask("GET", "/docs")
    assert status == 200
    assert b"POST /classify" in page
    for path in ("/health", "/", "/docs"):
        assert service.ask("HEAD", path) == (200, b""), path
    _, api = service.ask("GET", "/openapi.json")
    assert "requestBody" in api["paths"]["/classify"]["post"]


def test_requests_beyond_the_limit_are_told_to_try_again(service: Service, digit_images: list[Path]) -> None:
    images = [path.read_bytes() for path in digit_images[:WAITING]]
    with service.waiting(images) as sent:
        status, answer = service.classify(images[0])
        assert (status, "try again" in answer["error"]) == (503, True)
    assert {answer_of(each)[0] for each in sent} == {200}
    assert service.classify(images[0])[0] == 200


def test_it_counts_for_prometheus(service: Service, digit_images: list[Path]) -> None:
    def counted(name: str) -> float:
        lines = service.ask("GET", "/metrics")[1].decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    ok, images = 'resnet_ops_requests_total{outcome="ok"}', "resnet_ops_batch_images_sum"
    before = counted(ok), counted(images), counted("resnet_ops_batch_images_count")
    with service.waiting([path.read_bytes() for path in digit_images[:8]]) as sent:
        pass
    assert {answer_of(each)[0] for each in sent} == {200}
    assert (counted(ok), counted(images)) == (before[0] + 8, before[1] + 8)
    assert counted("resnet_ops_batch_images_count") < before[2] + 8  # what waited together was batched


def test_ended_it_answers_what_it_has_in_hand_and_leaves_no_process(service: Service, digit_images: list[Path]) -> None:
    """The last test: it ends the service."""
    images = [path.read_bytes() for path in digit_images[:8]]
    processes = below(service.process.pid)
    assert len(processes) > 4
    with service.waiting(images) as sent:
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: service.ask("GET", "/health")[0] == 503)
        status, answer = service.classify(images[0])  # no more are taken
        assert (status, "stopping" in answer["error"]) == (503, True)
        assert service.process.poll() is None
    for each in sent:
        status, answer = answer_of(each)
        assert (status, len(answer["top"])) == (200, 1)
    out, err = service.process.communicate(timeout=60)
    assert (service.process.returncode, out) == (0, "")
    assert "Traceback" not in err
    wait_for(lambda: not [pid for pid in processes if alive(pid)])


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(digit_files: DigitFiles, digit_images: list[Path]) -> None:
    service = started(digit_files.normalized)
    processes = below(service.process.pid)
    with service.waiting([digit_images[0].read_bytes()]):
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: service.ask("GET", "/health")[0] == 503)
        service.process.send_signal(signal.SIGTERM)
        _, err = service.process.communicate(timeout=10)
    assert service.process.returncode == 130
    assert "were not answered" in err
    assert "Traceback" not in err
    wait_for(lambda: not [pid for pid in processes if alive(pid)])


def test_a_wrong_request_is_one_line(cli: Cli, digit_files: DigitFiles, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(digit_files.normalized.read_bytes()[:5000])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in [
            ((digit_files.normalized, "--port", port), f"Port {port} of 127.0.0.1 is taken"),
            ((digit_files.normalized, "--port", 70000), "--port"),
            ((digit_files.normalized, "--host", "no.such.host.invalid"), "cannot be listened on"),
            ((digit_files.normalized, "--cluster", "http://127.0.0.1:8265"), "job server"),
            ((digit_files.normalized, "--batch", 0), "--batch"),
            ((tmp_path / "no.onnx",), "is damaged"),
        ]:
            ended = cli("serve", *arguments)
            assert ended.code == 2, ended.err
            (line,) = ended.err.splitlines()
            assert line.startswith("error: ")
            assert words in line


def below(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    processes = {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }
    assert children.exists()
    return processes | {each for child in processes for each in below(child)}


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
