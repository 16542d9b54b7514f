"""A real service under load, with faulty requests, and stopped while it works: each answer is that of `predict`."""

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

    def begin(self, image: bytes) -> socket.socket:
        """Send all of an image but its last byte."""
        sending = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST /classify?top=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\nConnection: close\r\n\r\n"
        sending.sendall(head.encode() + image[:-1])
        return sending


def finish(sending: socket.socket, image: bytes) -> tuple[int, Any]:
    """Send the last byte and read the answer."""
    sending.sendall(image[-1:])
    with sending, sending.makefile("rb") as file:
        head, _, content = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


@pytest.fixture(scope="module")
def service(digit_files: DigitFiles) -> Iterator[Service]:
    limits = ["--max-upload-mb", "0.1", "--max-pixels", "10000", "--max-waiting", WAITING, "--batch", "8"]
    command = [*COMMAND, "serve", digit_files.normalized, "--port", "0", "--json", *limits]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.stderr.read())
    assert_keys("serve", json.loads(line))
    yield Service(process, json.loads(line))
    process.terminate()
    process.wait(60)


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
    service: Service, cli: Cli, digit_files: DigitFiles, digit_images: list[Path]
) -> None:
    rows = cli("predict", digit_files.normalized, *digit_images, "--top", 3, "--json").json["predictions"]
    faults = {b"": 400, b"not an image": 400, digit_images[0].read_bytes()[:-40]: 400, noise(190): 413}
    requests = [path.read_bytes() for path in digit_images] * 3
    for index, fault in enumerate(list(faults) * 15):
        requests.insert(index * 10, fault)
    with ThreadPoolExecutor(WAITING) as pool:
        answers = list(pool.map(lambda image: service.classify(image, "?top=3"), requests))
    expected = {path.read_bytes(): row["top"] for path, row in zip(digit_images, rows, strict=True)}
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
    assert len(answers) == 660


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
        (noise(190), "", {}, 413, "0.1 MB"),
        (png(101, 100), "", {}, 413, "10,000 pixels; this one has 101 x 100"),
        (png(60_000, 60_000), "", {}, 413, "10,000 pixels; this one has more"),
    ]:
        status, answer = service.classify(image, query, **headers)
        assert (status, list(answer)) == (expected, ["error"]), answer
        assert words in answer["error"]
    assert service.ask("GET", "/classify")[0] == 405
    status, answer = service.ask("GET", "/nowhere")
    assert status == 404
    assert "POST /classify" in answer["error"]
    status, answer = service.classify(good, "?top=99")
    assert (status, len(answer["top"])) == (200, 10)


def test_an_upload_that_does_not_say_how_long_it_is_is_cut_off_too(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/classify", iter([bytes(50_000)] * 4), encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, "0.1 MB" in json.load(answer)["error"]) == (413, True)


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
    started = [service.begin(image) for image in images]
    wait_for(lambda: service.ask("GET", "/health")[1]["waiting"] == WAITING)
    status, answer = service.classify(images[0])
    assert (status, "try again" in answer["error"]) == (503, True)
    assert {finish(sending, image)[0] for sending, image in zip(started, images, strict=True)} == {200}
    assert service.classify(images[0])[0] == 200


def test_an_aborted_request_frees_its_place(service: Service, digit_images: list[Path]) -> None:
    image = digit_images[0].read_bytes()
    for sending in [service.begin(image) for _ in range(WAITING)]:
        sending.close()
    wait_for(lambda: service.ask("GET", "/health")[1]["waiting"] == 0)
    assert service.classify(image)[0] == 200


def test_ended_it_answers_what_it_has_in_hand_and_leaves_no_process(service: Service, digit_images: list[Path]) -> None:
    """The last test: it ends the service."""
    images = [path.read_bytes() for path in digit_images[:8]]
    started = [service.begin(image) for image in images]
    wait_for(lambda: service.ask("GET", "/health")[1]["waiting"] == len(images))
    processes = below(service.process.pid)
    assert len(processes) > 4
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.classify(images[0])[0] != 200)  # no more are taken
    assert service.process.poll() is None
    for sending, image in zip(started, images, strict=True):
        status, answer = finish(sending, image)
        assert (status, len(answer["top"])) == (200, 1)
    out, err = service.process.communicate(timeout=60)
    assert (service.process.returncode, out) == (0, "")
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


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
