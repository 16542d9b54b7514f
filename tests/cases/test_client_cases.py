"""Clients as they come: health checks, uploads in every wrapping, older runtimes. Cases C38, C39, C43 and their kin."""

import base64
import html
import io
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from starlette.testclient import TestClient

from resnet_ops.export import graph, runtime
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.job import export_onnx
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.serving.app import build_app
from resnet_ops.serving.limits import Answer, Received, Refusal, Served, ServiceLimits
from resnet_ops.serving.replica import Replica
from resnet_ops.serving.request_body import BodyError, extract_image
from resnet_ops.serving.service import InferenceService
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles

LIMITS = ServiceLimits(
    waiting=4, upload_bytes=1_000_000, receive_s=30, connections=100, pixels=10_000, batch=2, replicas=1
)


class Unbatched(Replica):
    """A replica without Ray Serve's batches, which there are in its own processes only."""

    def _batch_requests(self) -> Callable[[np.ndarray], Coroutine[Any, Any, tuple[np.ndarray, int | None]]]:
        async def classify(pixels: np.ndarray) -> tuple[np.ndarray, int]:
            return self.classifier.classify(pixels[None])[0], 1

        return classify


@pytest.fixture(scope="module")
def client(digit_files: DigitFiles) -> Iterator[TestClient]:
    """The app in this process; tests/serving has it behind Ray Serve."""
    metadata = Classifier(digit_files.normalized, "cpu").metadata
    replica = Unbatched(digit_files.normalized.read_bytes, metadata, "cpu", LIMITS, 1)

    async def ask(request: Received) -> Answer | Refusal:
        (answer,) = await replica.classify([request])
        assert answer is not None  # no image here is large
        return answer

    service = InferenceService(Served("model.onnx", metadata, replica.provider()), LIMITS, ask)
    with TestClient(build_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def picture(digit_images: list[Path]) -> bytes:
    return digit_images[3].read_bytes()


@pytest.mark.parametrize("path", ["/health", "/", "/docs"])
def test_c38_head_is_answered(client: TestClient, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, client.get(path).headers["content-type"])
    assert client.head("/classify").status_code == 405


def in_form(text: str) -> dict[str, Any]:
    return {"content": text, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}


def uploads(image: bytes) -> dict[str, dict[str, Any]]:
    """Requests as clients make them, all of the same image."""
    text = base64.b64encode(image).decode()
    return {
        "as it is": {"content": image},
        "as curl says of --data-binary": {"content": image, "headers": {"Content-Type": "x-www-form-urlencoded"}},
        "as JSON, which it is not": {"content": image, "headers": {"Content-Type": "application/json"}},
        "form": {"files": {"image": ("a photo.jpg", image, "image/jpeg")}},
        "form of another name": {"files": {"file": image}, "data": {"top": "3", "note": "a cat"}},
        "form with base64": {"files": {"image": (None, text)}},
        "JSON": {"json": {"image": text}},
        "data URL": {"json": {"name": "photo.jpg", "image": f"data:image/png;base64,{text}"}},
        "TensorFlow Serving": {"json": {"instances": [{"b64": text}]}},
        "Hugging Face": {"json": {"inputs": text, "parameters": {"top_k": 3}}},
        "JSON not ASCII": {"content": json.dumps({"naïve": "é", "i": text}, ensure_ascii=False).encode()},
        "a JSON string": {"json": text},
        "base64 alone, in lines": {"content": base64.encodebytes(image)},
        "base64 for URLs, without padding": {"content": base64.urlsafe_b64encode(image).rstrip(b"=")},
        "form without a file": in_form("top=3&image=" + urllib.parse.quote_plus(text)),
        "form, + not escaped": in_form("image=" + text),
    }


@pytest.mark.parametrize("upload", uploads(b""))
def test_c43_an_image_is_classified_however_it_is_wrapped(client: TestClient, picture: bytes, upload: str) -> None:
    expected = client.post("/classify", content=picture).json()
    assert len(expected["top"]) == 5
    answer = client.post("/classify", **uploads(picture)[upload])
    assert (answer.status_code, answer.json()) == (200, expected)


def test_c43_a_wrong_upload_is_told_how(client: TestClient, picture: bytes) -> None:
    cut = picture.replace(b"\n", b"").replace(b"\r", b"")  # as curl -d sends it
    text = base64.b64encode(picture).decode()
    for request, words in [
        (in_form(""), "empty"),
        ({"content": cut, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, "cannot be decoded"),
        ({"json": {"image": "aGk="}}, "no image in the request"),
        ({"json": {"image": "/home/me/photo.jpg"}}, "no image in the request"),
        ({"json": {"url": "https://example.org/a/long/path/to/a/photo/of/a/cat.jpg"}}, "no image in the request"),
        ({"json": {"images": [text, text]}}, "2 images in one request"),
        ({"content": b'{"image": '}, "cannot be read"),
        ({"content": b"[" * 100_000}, "cannot be read"),
        ({"files": [("image", picture), ("image", picture)]}, "2 images in one request"),
        ({"files": {}, "data": {"top": "3"}}, "no image in the request"),
        ({"content": picture, "headers": {"Content-Type": "multipart/form-data"}}, "no image in the request"),
        ({"content": b"&".join([b"a=1"] * 1000)}, "cannot be read"),
    ]:
        answer = client.post("/classify", **request)
        assert answer.status_code == 400, request
        assert words in answer.json()["error"]
        assert "--data-binary @photo.jpg" in answer.json()["error"]
    answer = client.post("/classify", content=picture, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "Content-Encoding" in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("side", [1, 61])  # a GIF 61 wide begins with GIF89a=, as a form might
def test_images_are_not_taken_for_text(kind: str, side: int) -> None:
    file = io.BytesIO()
    Image.new("L", (side, side), 65).save(file, kind)
    assert extract_image(file.getvalue(), "application/x-www-form-urlencoded") == file.getvalue()


def test_any_bytes_come_out_of_a_form_as_they_went_in() -> None:
    for size in (0, 1, 40, 5000):
        content = b"\r\n--" + os.urandom(size) + b"\n\r\n"
        head = b'--xY\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n'
        body = head + content + b"\r\n--xY--\r\n"
        assert extract_image(body, "multipart/form-data; boundary=xY") == content
        with pytest.raises(BodyError):  # cut off
            extract_image(body[:-12], "multipart/form-data; boundary=xY")


def test_the_page_needs_no_internet(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /classify" in page.text
    assert "top=5" in page.text
    assert "://" not in page.text
    assert 'src="' not in page.text


def test_the_page_says_what_is_served_and_how_to_ask(client: TestClient, digit_files: DigitFiles) -> None:
    text = html.unescape(client.get("/docs").text)
    (example,) = re.findall(r"<pre>(.*)</pre>", text)
    assert json.loads(example)["model"] == digit_files.checkpoint.info.model
    asked = re.sub(r"<[^>]*>", "", text)
    assert "curl --data-binary @photo.jpg '/classify?top=5'\n" in asked  # a ? is a wildcard in zsh
    available = client.post("/docs").json()["error"].rpartition("available: ")[2].split(", ")
    listed = re.findall(r"<code>(.*)</code></td>", re.sub(r"</?a\b[^>]*>", "", text))
    assert set(available) - {"GET /docs"} <= set(listed)  # which is this page
    assert client.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {
        "text/plain"
    }


def test_c39_a_file_for_older_runtimes_is_proven(trained: TrainResult, digit_files: DigitFiles, tmp_path: Path) -> None:
    config = ExportConfig(run=str(trained.run_dir), opset=13, input="raw", images=40, out=tmp_path / "old.onnx")
    result = export_onnx(config)
    assert result.validated, result.failed_checks
    model = onnx.load(str(result.onnx))
    # Those of ONNX 1.8, the release that brought opset 13.
    assert (model.opset_import[0].version, model.ir_version) == (13, 7)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 1), np.uint8)
    old, new = (runtime.create_session(file, runtime.CPU).run(pixels) for file in (result.onnx, digit_files.raw))
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17])
def test_c39_every_older_opset_has_all_that_a_graph_uses(digit_files: DigitFiles, opset: int) -> None:
    model = onnx.load(digit_files.normalized)
    graph.lower_opset(model, opset)
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    expected = runtime.create_session(digit_files.normalized, runtime.CPU).run(x)
    np.testing.assert_array_equal(runtime.create_session(model.SerializeToString(), runtime.CPU).run(x), expected)
    graph.prepend_preprocessing(model, Preprocessing.of(digit_files.checkpoint.info, "raw"))
    graph.append_softmax(model)
    onnx.checker.check_model(model, full_check=True)


def test_c39_the_ir_version_is_the_lowest(digit_files: DigitFiles) -> None:
    model = onnx.load(digit_files.normalized)
    assert model.ir_version == helper.find_min_ir_version_for(model.opset_import) == 8
