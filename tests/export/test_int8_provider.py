"""int8 is for CPUs and TensorRT: with CUDA it is refused before anything is computed, by every command."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from resnet_ops.errors import UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles, Ended

Cli = Callable[..., Ended]


@pytest.fixture
def int8_file(digit_files: DigitFiles, tmp_path: Path) -> Path:
    """A file that says that it is int8; nothing of it is computed."""
    model = onnx.load(digit_files.normalized)
    onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props} | {"precision": "int8"})
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("it was run before it was refused")

    monkeypatch.setattr(runtime, "create_session", run)
    monkeypatch.setattr(untrusted, "run_in_sandbox", run)


@pytest.mark.parametrize("command", ["validate", "bench", "predict", "serve"])
def test_an_int8_file_is_refused_on_cuda(command: str, cli: Cli, int8_file: Path, digit_images: list[Path]) -> None:
    images = digit_images[:1] if command == "predict" else []
    ended = cli(command, int8_file, *images, "--provider", "cuda")
    assert ended.code == 2
    assert "int8 is for CPUs and TensorRT" in ended.err
    assert "--precision fp16" in ended.err


def test_an_int8_export_is_refused_on_cuda(cli: Cli, trained: TrainResult) -> None:
    before = sorted(trained.run.path.rglob("*"))
    ended = cli("export", trained.run.path, "--onnx", "--precision", "int8", "--provider", "cuda")
    assert ended.code == 2
    assert "For CUDA export with --precision fp16" in ended.err
    assert sorted(trained.run.path.rglob("*")) == before


def test_auto_is_the_cpu_even_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_gpu", lambda: True)
    monkeypatch.setattr(runtime, "missing_cuda_libraries", lambda _: {})
    assert runtime.resolve_provider("auto", "int8") == runtime.CPU
    assert runtime.resolve_provider("auto", "fp16") == runtime.CUDA
    assert runtime.resolve_provider("tensorrt", "int8") == runtime.TENSORRT
    with pytest.raises(UserError, match="not for --provider cuda"):
        runtime.resolve_provider("cuda", "int8")
