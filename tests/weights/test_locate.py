"""Where weights are looked for: torchvision's cache and the Hub's, a server that speaks the Hub's protocol, neither."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.training.observer import Observer
from resnet_ops.training.start import read_weights
from resnet_ops.weights import pretrained
from resnet_ops.weights.locate import locate

CONFIG = {
    "architecture": "resnet8",
    "pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.9, "interpolation": "bicubic"},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def listing(*names: str) -> bytes:
    return json.dumps({"id": "me/net", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()


@pytest.fixture
def hub_files() -> dict[str, bytes]:
    torch.manual_seed(0)
    return {
        "/me/net/resolve/main/model.safetensors": save(build("resnet8", num_classes=3).state_dict()),
        "/me/net/resolve/main/config.json": json.dumps(CONFIG).encode(),
        "/api/models/me/net": listing("model.safetensors", "config.json", "pytorch_model.bin"),
        "/me/old/resolve/main/pytorch_model.bin": b"\x80\x02N.",
        "/api/models/me/old": listing("pytorch_model.bin"),
        "/api/models/me/empty": listing("README.md"),
    }


@pytest.fixture
def hub(hub_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that speaks the Hub's protocol, and what was asked of it."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = hub_files.get(self.path)
            asked.append(f"{self.command} {self.path}")
            self.send_response(200 if content is not None else 404)
            if content is None:
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
            else:
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if content is not None and self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield asked
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_once_and_then_its_cache(hub: list[str]) -> None:
    warnings: list[str] = []
    located = locate("hf:me/net", "resnet8", warnings.append)
    assert located is not None
    assert len(warnings) == 1
    assert warnings[0].startswith("Downloading hf:me/net from http://127.0.0.1")
    info = pretrained.read(located.path, located.origin, located.metadata).info
    assert info.origin == "hf:me/net (model.safetensors)"
    assert info.preprocessing is not None
    assert (info.preprocessing.crop_share, info.preprocessing.interpolation) == (0.9, "bicubic")
    assert "GET /me/net/resolve/main/model.safetensors" in hub
    hub.clear()
    assert locate("hf:me/net", "resnet8", warnings.append) == located
    assert (hub, len(warnings)) == ([], 1)
    copied = locate(str(located.path.parent), "resnet8", warnings.append)
    assert copied is not None
    assert pretrained.read(copied.path).info.preprocessing == info.preprocessing


def test_the_hub_says_what_it_does_not_have(hub: list[str]) -> None:
    located = locate("hf:me/old", "resnet8", lambda _: None)
    assert located is not None
    assert (located.path.name, located.metadata) == ("pytorch_model.bin", None)
    with pytest.raises(UserError, match=r"hf:you/none cannot be fetched: there is no such public repository.*hf auth"):
        locate("hf:you/none", "resnet8", lambda _: None)
    with pytest.raises(UserError, match=r"hf:me/empty has neither model.safetensors nor pytorch_model.bin"):
        locate("hf:me/empty", "resnet8", lambda _: None)
    with pytest.raises(UserError, match="names no repository"):
        locate("hf:resnet50", "resnet8", lambda _: None)


def test_without_a_network_it_says_what_to_fetch_from_the_hub(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as refused:
        locate("hf:me/net", "resnet8", lambda _: None)
    assert (
        f"hf:me/net is not in {tmp_path / 'hub'}, and cannot be fetched from http://127.0.0.1:9 ("
        in refused.value.cause
    )
    assert "hf download me/net" in refused.value.remedy


def test_torchvision_weights_are_those_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = f"resnet50-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    monkeypatch.setattr(torchvision.models.ResNet50_Weights.DEFAULT.value, "url", f"https://127.0.0.1:9/{name}")
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    warnings: list[str] = []
    located = locate("imagenet", "resnet50", warnings.append)
    assert located is not None
    assert (located.path, warnings) == (file, [])
    assert located.origin == f"torchvision's ResNet50_Weights.IMAGENET1K_V2 ({name})"
    assert located.metadata is not None
    assert located.metadata.preprocessing is not None
    assert located.metadata.preprocessing.crop_share == 224 / 232
    assert located.metadata.preprocessing.mean == (0.485, 0.456, 0.406)
    assert located.metadata.class_names[0] == "tench"
    file.write_bytes(b"other weights")
    with pytest.raises(UserError, match=f"{name} is not what torchvision published: .*Delete it"):
        locate("imagenet", "resnet50", warnings.append)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    warnings: list[str] = []
    with pytest.raises(UserError) as refused:
        locate("imagenet", "resnet18", warnings.append)
    with pytest.raises(UserError, match=r"on this machine\. Or give others, .*or leave --weights out: from scratch"):
        read_weights(TrainConfig.of(weights="imagenet", model="resnet18"), Observer())
    url, file = "https://download.pytorch.org/models/resnet18-f37072fd.pth", "hub/checkpoints/resnet18-f37072fd.pth"
    assert warnings == [f"Downloading {url} (45 MB) to {tmp_path / file}"]
    assert refused.value.cause == f"{url} cannot be downloaded (no connection: Connection refused)."
    assert refused.value.remedy.endswith(f"to {tmp_path / file} on this machine.")
    assert not (tmp_path / file).exists()


def test_a_cifar_network_has_no_imagenet_weights() -> None:
    with pytest.raises(UserError, match=r"no ImageNet weights of resnet20, a CIFAR network.*--model resnet18"):
        locate("imagenet", "resnet20", lambda _: None)
    with pytest.raises(UserError, match=r"plain34.*--model resnet34"):
        locate("imagenet", "plain34", lambda _: None)
