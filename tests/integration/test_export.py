"""`resnet-ops export`: the file gets its name only once it is proven."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.opening import open_source
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job
from tests.conftest import Ended, command

FIELDS = {
    "onnx", "precision", "input", "provider", "validated", "nodes_by_provider", "max_abs_diff", "top1_agreement",
    "images", "val_accuracy_torch", "val_accuracy_onnx", "tolerance",
}  # fmt: skip


@pytest.fixture
def run(trained: job.TrainResult, tmp_path: Path) -> Run:
    """A copy of the trained run, to be damaged at will."""
    shutil.copytree(trained.run.path, tmp_path / "runs" / "mine")
    return Run(tmp_path / "runs" / "mine")


@pytest.fixture(scope="module")
def exported(trained: job.TrainResult, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Ended]:
    """A copy of the trained run with its export, as its owner makes it: a process, in the folder of the runs."""
    run = Run(tmp_path_factory.mktemp("e") / "runs" / "mine")
    shutil.copytree(trained.run.path, run.path)
    ended = command("export", "mine", "--onnx", "--json", cwd=run.path.parent.parent)
    assert ended.returncode == 0, ended.stderr
    return run, Ended(ended.returncode, ended.stdout, ended.stderr)


def export(cli: Callable[..., Ended], run: Run, *options: object) -> Ended:
    return cli("export", run.name, "--onnx", "--runs-dir", run.path.parent, *options)


def test_the_best_checkpoint_is_exported_and_proven(exported: tuple[Run, Ended]) -> None:
    run, ended = exported
    (line,) = ended.out.splitlines()
    result = json.loads(line)
    assert set(result) >= FIELDS
    assert result["validated"] is True
    assert result["images"] == 359
    best = run.read().best
    assert best is not None
    assert result["val_accuracy_onnx"] == result["val_accuracy_torch"] == pytest.approx(best.val_accuracy)
    if not torch.cuda.is_available():
        assert result["provider"] == "CPUExecutionProvider"
        assert result["cuda_validated"] is False
        assert "Not verified on CUDA" in ended.err
    record = json.loads((run.export / "model.onnx.json").read_text())
    assert record["sha256"] == hashlib.sha256((run.export / "model.onnx").read_bytes()).hexdigest()
    assert sorted(p.name for p in run.export.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_a_file_taken_elsewhere_is_put_against_its_word(cli: Callable[..., Ended], run: Run, tmp_path: Path) -> None:
    assert export(cli, run, "--softmax").code == 0
    file = shutil.copy(run.export / "model.onnx", tmp_path / "m.onnx")
    ended = cli("validate", file, "--json")
    assert ended.code == 0, ended.err
    assert "not with torch" in ended.err
    assert ended.json["val_accuracy_torch"] is None
    assert cli("validate", file, "--checkpoint", run.path, "--json").json["top1_agreement"] == 1
    changed = onnx.load(file)
    weight = next(tensor for tensor in changed.graph.initializer if tensor.name == "fc.weight")
    weight.raw_data = bytes(reversed(weight.raw_data))
    onnx.save(changed, tmp_path / "changed.onnx")
    ended = cli("validate", tmp_path / "changed.onnx", "--json")
    assert ended.code == 1
    assert ended.json["validated"] is False
    assert "accuracy as in metadata" in ended.err


def test_a_precision_that_costs_too_much_is_refused(cli: Callable[..., Ended], run: Run) -> None:
    """Weights whose answers hang by a thread: 8 bits take them away."""
    best = checkpoints.read(checkpoints.best_file(run))
    rng = torch.Generator().manual_seed(0)
    model = dict(best.model)
    model["fc.weight"] = model["fc.weight"] * 1e-3 + torch.randn(model["fc.weight"].shape, generator=rng) * 3
    checkpoints.save(checkpoints.best_file(run), best.info, {f"model/{name}": value for name, value in model.items()})
    ended = export(cli, run, "--precision", "int8", "--max-accuracy-drop", "0")
    assert ended.code == 1
    assert "Verification failed: " in ended.err
    assert sorted(p.name for p in run.export.iterdir()) == ["model-int8.onnx.rejected", "model-int8.onnx.rejected.json"]


def test_the_file_works_in_a_stranger_hands(exported: tuple[Run, Ended], trained: job.TrainResult) -> None:
    """Nothing of ours: plain ONNX Runtime, the metadata, and pixels."""
    run, _ = exported
    session = onnxruntime.InferenceSession(str(run.export / "model.onnx"), providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    steps = json.loads(told["preprocessing"])
    images = open_source("digits").load("val")
    x = (images.pixels.transpose(0, 3, 1, 2) * steps["scale"] - steps["mean"][0]) / steps["std"][0]
    (logits,) = session.run(["logits"], {"images": x.astype(np.float32)})
    names = json.loads(told["class_names"])
    right = [names[k] == str(label) for k, label in zip(logits.argmax(1), images.labels, strict=True)]
    assert np.mean(right) == pytest.approx(trained.record.best.val_accuracy, abs=1e-9)


def test_a_refuted_export_never_gets_the_final_name(cli: Callable[..., Ended], run: Run) -> None:
    ended = cli("export", run.path, "--onnx", "--tolerance", "1e-12", "--json")
    assert ended.code == 1
    assert ended.json["validated"] is False
    assert sorted(p.name for p in run.export.iterdir()) == ["model.onnx.rejected", "model.onnx.rejected.json"]
    assert "Verification failed: " in ended.err
    assert export(cli, run).code == 0
    before = (run.export / "model.onnx").read_bytes()
    assert export(cli, run, "--tolerance", "1e-12").code == 1
    assert (run.export / "model.onnx").read_bytes() == before  # the proven one stays


def test_exporting_again_gives_the_same_bytes_in_another_process_and_through_a_link(
    cli: Callable[..., Ended], exported: tuple[Run, Ended]
) -> None:
    run, _ = exported
    before = (run.export / "model.onnx").read_bytes()
    link = run.path.with_name("production")
    link.symlink_to(run.name)
    assert export(cli, Run(link)).code == 0
    assert (run.export / "model.onnx").read_bytes() == before


def test_a_damaged_best_falls_back_and_says_so(cli: Callable[..., Ended], run: Run) -> None:
    best = run.best / "model.safetensors"
    best.write_bytes(best.read_bytes()[: best.stat().st_size // 2])
    ended = export(cli, run, "--json")
    assert ended.code == 0, ended.err
    assert "Skipping a checkpoint" in ended.err
    assert "the best intact checkpoint" in ended.err
    assert Path(ended.json["checkpoint"]).parent == run.checkpoints
    for path in run.checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    ended = export(cli, run)
    assert ended.code == 1
    assert "no intact checkpoint" in ended.err


def test_a_pickle_in_its_place_is_refused(cli: Callable[..., Ended], run: Run) -> None:
    torch.save({"state_dict": {}}, run.best / "model.safetensors")
    ended = export(cli, run)
    assert ended.code == 2
    assert "is a pickle; loading it could run code" in ended.err
    torch.save({"state_dict": {}}, run.path / "weights.pt")
    assert cli("export", run.path / "weights.pt", "--onnx").code == 2


def test_one_checkpoint_can_be_named(cli: Callable[..., Ended], run: Run, tmp_path: Path) -> None:
    file = next(iter(run.checkpoints.iterdir()))
    ended = cli("export", file, "--onnx", "--json")
    assert ended.code == 0, ended.err
    assert Path(ended.json["onnx"]) == run.export / "model.onnx"
    alone = tmp_path / "alone.safetensors"
    shutil.copy(file, alone)
    ended = cli("export", alone, "--onnx", "--json")
    assert (ended.code, Path(ended.json["onnx"])) == (0, tmp_path / "model.onnx")


def test_images_that_changed_are_noticed(cli: Callable[..., Ended], tmp_path: Path) -> None:
    data = tmp_path / "mine.parquet"
    shutil.copy(EMBEDDED["digits"], data)
    options = ("--model", "resnet8", "--epochs", 1, "--runs-dir", tmp_path / "runs", "--name", "mine")
    assert cli("train", *options, "--data", data).code == 0
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(data).slice(1), data)
    run = Run(tmp_path / "runs" / "mine")
    ended = export(cli, run)
    assert ended.code == 2
    assert "differ from those the network was trained on" in ended.err
    run.write(run.read().model_copy(update={"status": "interrupted"}))
    assert "differ from those" in cli("train", "--resume", "mine", "--runs-dir", tmp_path / "runs").err
    assert export(cli, run, "--data", "digits", "--json").json["validated"] is True
    data.unlink()
    ended = export(cli, run, "--json")
    assert "no validation images are known here" in ended.err
    assert (ended.json["validated"], ended.json["images"]) == (True, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_cuda_demanded_and_absent_is_a_failure(cli: Callable[..., Ended], run: Run) -> None:
    ended = export(cli, run, "--provider", "cuda")
    assert ended.code == 1
    assert "This machine has no NVIDIA GPU" in ended.err
    assert not list(run.export.iterdir())


@pytest.mark.parametrize(("where", "name"), [("openvino", "OpenVINO"), ("opencv", "OpenCV")])
def test_a_file_is_verified_in_another_runtime(
    cli: Callable[..., Ended],
    exported: tuple[Run, Ended],
    where: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = exported[0].export / "model.onnx"
    ended = cli("validate", file, "--runtime", where, "--json")
    assert ended.code == 0, ended.err
    assert f"{name} compared with torch" in ended.err
    assert (ended.json["provider"], ended.json["validated"], ended.json["cuda_validated"]) == (name, True, False)
    assert ended.json["max_rel_diff"] <= 1e-5
    ended = cli("validate", file, "--runtime", where, "--provider", "cuda")
    assert (ended.code, "belongs to ONNX Runtime" in ended.err) == (2, True)
    monkeypatch.setitem(sys.modules, {"OpenVINO": "openvino", "OpenCV": "cv2"}[name], None)
    ended = cli("validate", file, "--runtime", where)
    assert (ended.code, ended.err.count("error: ")) == (2, 1)
    assert f"{name} is not installed. pip install 'resnet-ops[{where}]'" in ended.err
