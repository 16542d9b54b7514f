"""Fixtures: one network, exported once for all tests."""

import onnx
import pytest

from resnet_ops.export import checks
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.reference import Reference
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.samples import make_checkpoint, make_images, make_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("c") / "c.safetensors", "resnet8", stored=33)


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def model(checkpoint: Checkpoint) -> onnx.ModelProto:
    return make_model(checkpoint)


@pytest.fixture(scope="session")
def raw_model(checkpoint: Checkpoint) -> onnx.ModelProto:
    return make_model(checkpoint, raw=True)


@pytest.fixture(scope="session")
def images() -> ValidationImages:
    return make_images((47, 53))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the largest batch, which takes seconds each time; `test_export` does not."""
    monkeypatch.setattr(checks, "MAX_BATCH", 128)
