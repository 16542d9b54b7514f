"""Places and files: what a user may name, and that a file on a disk is whole after any crash."""

import os
from pathlib import Path

import pytest

from resnet_ops import files
from resnet_ops.config import TrainConfig
from resnet_ops.errors import PausedError, UserError
from resnet_ops.export.config import ExportConfig


def test_a_url_survives_every_way_that_a_configuration_goes() -> None:
    config = TrainConfig.of(runs_dir="s3://bucket/my/runs/")
    assert str(config.runs_dir) == "s3://bucket/my/runs"
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert str(again.runs_dir / "mine" / "run.json") == "s3://bucket/my/runs/mine/run.json"
    assert files.is_remote(ExportConfig.of(run="x", runs_dir="s3://bucket").runs_dir)


def test_what_is_no_url_is_a_path_of_this_machine(tmp_path: Path) -> None:
    assert files.to_path("runs") == Path("runs")
    assert files.to_path(f"file://{tmp_path}/runs") == tmp_path / "runs"
    assert files.to_path(tmp_path) is tmp_path


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/runs", "contains credentials"),
        ("s3://bucket/runs?X-Amz-Signature=secret", "contains credentials or a query"),
        ("s3://", "has no bucket"),
        ("se://bucket/runs", "Storage se:// is not supported"),
    ],
)
def test_urls_that_cannot_be_are_refused_and_give_nothing_away(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        TrainConfig.of(runs_dir=url)
    assert "secret" not in str(error.value)


def test_writing_atomically_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    files.write_atomically(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: os.close(-1))  # as a disk that fails
        with pytest.raises(PausedError, match="cannot be written"):
            files.write_atomically(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert file.read_bytes() == b"old"
    files.write_atomically(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert file.read_bytes() == b"new"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    files.write_folder(folder, {"a": b"1", "b": b"2"})
    files.write_folder(folder, {"a": b"3"})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"a": b"3"}
    with pytest.raises(PausedError, match="cannot be written"):
        files.write_folder(folder, {"a": b"4", "no/such": b""})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"a": b"3"}
    assert list(tmp_path.iterdir()) == [folder]
