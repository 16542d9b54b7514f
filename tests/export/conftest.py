"""One network, exported once for all tests."""

import onnx
import pytest

from resnet_ops.export import checks
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.reference import Reference
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.made import make_checkpoint, make_model, make_shown


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("c") / "c.safetensors", "resnet20", stored=33)


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
def shown() -> ValidationImages:
    return make_shown((47, 53))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest batch that fits takes seconds each time; `test_export` lets it be."""
    monkeypatch.setattr(checks, "LARGEST_BATCH", 128)
