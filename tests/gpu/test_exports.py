"""Every export is proven where it will run, and its pixels never leave the GPU."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from resnet_ops.export import checks, runtime
from resnet_ops.export.reference import Reference
from resnet_ops.training.checkpoint import read_best
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles, Ended
from tests.export.samples import change, make_checkpoint, make_images, make_model, verify_model
from tests.gpu.conftest import succeeded
from tests.gpu.hardware import PROVIDER

Cli = Callable[..., Ended]
FORMS = [(precision, pixels) for precision in ("fp32", "fp16") for pixels in ("normalized", "raw")]
OWN = runtime.CPU if PROVIDER == "cpu" else runtime.CUDA


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the largest batch, which takes seconds each time."""
    monkeypatch.setattr(checks, "MAX_BATCH", 128)


def nodes_with_pixels(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that pixels flow through; a tensor's shape holds none of them."""
    (image,) = (value.name for value in model.graph.input)
    carrying, found = {image}, set()
    for node in model.graph.node:  # in topological order
        if carrying & set(node.input) and node.op_type not in ("Shape", "Size"):
            carrying |= set(node.output)
            found.add(node.name)
    return found


def places(file: Path, folder: Path) -> dict[str, set[str]]:
    """Return, for each provider, the nodes with pixels that ONNX Runtime runs there."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # what is placed is what is written
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(file), options, providers=[runtime.resolve_provider(PROVIDER)])
    with_pixels = nodes_with_pixels(onnx.load(folder / "optimized.onnx"))
    found: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = {node.name for node in part.get_nodes()}
        found.setdefault(part.ep_name, set()).update(names & with_pixels)
    return {provider: names for provider, names in found.items() if names}


@pytest.mark.parametrize(("precision", "pixels"), FORMS)
def test_every_form_is_proven_on_the_gpu(
    precision: str, pixels: str, cli: Cli, trained: TrainResult, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    exported = succeeded(
        cli(
            "export", trained.run.path, "--onnx", "--precision", precision, "--input", pixels, "--provider", PROVIDER,
            "--out", file, "--json",
        )
    )  # fmt: skip
    assert exported["validated"]
    assert exported["provider"] == OWN
    assert exported["cuda_validated"] == (PROVIDER == "cuda")
    if pixels == "normalized":
        assert set(exported["nodes_by_provider"]) == {OWN}
    assert set(places(file, tmp_path)) == {OWN}
    again = succeeded(cli("validate", file, "--checkpoint", trained.run.path, "--provider", PROVIDER, "--json"))
    assert again["validated"]
    assert again["top1_agreement"] == 1


def test_int8_is_proven_on_the_cpu_and_says_so(cli: Cli, trained: TrainResult, tmp_path: Path) -> None:
    ended = cli(
        "export", trained.run.path, "--onnx", "--precision", "int8", "--out", tmp_path / "int8.onnx", "--json"
    )  # fmt: skip
    exported = succeeded(ended)
    assert exported["validated"]
    assert exported["provider"] == runtime.CPU
    if PROVIDER == "cuda":
        assert "fp16" in ended.err


def test_int8_is_refused_on_the_gpu_at_once(cli: Cli, trained: TrainResult, tmp_path: Path) -> None:
    ended = cli(
        "export", trained.run.path, "--onnx", "--precision", "int8", "--provider", "cuda", "--out",
        tmp_path / "int8.onnx",
    )  # fmt: skip
    assert ended.code == 2
    assert "--precision fp16" in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raw", [False, True])
def test_images_that_are_resized_are_proven_on_the_gpu(raw: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", "resnet20", stored=33)
    report = verify_model(
        make_model(checkpoint, raw=raw), Reference(checkpoint), make_images((47, 53)), tmp_path,
        provider=runtime.resolve_provider(PROVIDER),
    )  # fmt: skip
    assert report.validated, report.failed_checks
    if not raw:
        assert set(report.nodes_by_provider) == {OWN}


@pytest.mark.parametrize("form", ["normalized", "raw"])
def test_a_file_with_other_weights_is_refuted_on_the_gpu(
    form: str, cli: Cli, digit_files: DigitFiles, trained: TrainResult, tmp_path: Path
) -> None:
    model = onnx.load(getattr(digit_files, form))
    weights = next(tensor.name for tensor in model.graph.initializer if list(tensor.dims) == [10, 64])
    change(model, weights, lambda array: array + np.float32(1e-2) * array.std())
    onnx.save(model, tmp_path / "m.onnx")
    ended = cli(
        "validate", tmp_path / "m.onnx", "--checkpoint", trained.run.path, "--provider", PROVIDER, "--json"
    )  # fmt: skip
    assert ended.code == 1
    failed = [check["name"] for check in ended.json["checks"] if not check["held"]]
    assert "validation set" in failed
    assert "nodes" not in failed


def test_the_reference_is_that_of_the_cpu(trained: TrainResult) -> None:
    checkpoint, _ = read_best(trained.run)
    reference = Reference(checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (65, 8, 8, 1), np.uint8)
    ours = reference.logits(pixels)
    network = reference.network.cpu()
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (checkpoint.info.mean, checkpoint.info.std))
    with torch.no_grad():
        theirs = network(((torch.from_numpy(pixels).double() / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()
    assert np.abs(ours - theirs).max() < 1e-9 * np.abs(theirs).max()


def test_predictions_are_those_of_the_cpu(cli: Cli, digit_files: DigitFiles, digit_images: list[Path]) -> None:
    rows = {}
    for provider in (PROVIDER, "cpu"):
        ended = cli(
            "predict", digit_files.raw, *digit_images[:50], "--top", 3, "--provider", provider, "--json"
        )  # fmt: skip
        rows[provider] = succeeded(ended)["predictions"]
    for ours, theirs in zip(rows[PROVIDER], rows["cpu"], strict=True):
        assert ours["path"] == theirs["path"]
        for one, other in zip(ours["top"], theirs["top"], strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-3)


def test_a_file_is_proven_beside_its_run_without_naming_it(cli: Cli, trained: TrainResult, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "copy"
    shutil.copytree(trained.run.path, run)
    exported = succeeded(cli("export", "copy", "--runs-dir", run.parent, "--onnx", "--json"))
    assert (exported["provider"], exported["validated"]) == (OWN, True)
    assert succeeded(cli("validate", exported["onnx"], "--json"))["provider"] == OWN
