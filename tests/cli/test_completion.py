"""What the shell completes, asked for as bash does."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from resnet_ops.training import job
from tests.conftest import COMMAND


@pytest.fixture(scope="module")
def folder(trained: job.TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for name in ("flowers", "flowers-2", "cats"):
        shutil.copytree(trained.run.path, folder / "runs" / name)
    (folder / "photos").mkdir()
    (folder / "mine.toml").touch()
    return folder


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("train --resume fl", {"flowers", "flowers-2"}),
        ("runs show c", {"cats"}),
        ("train --recipe fi", {"finetune"}),
        ("train --recipe mi", {"mine.toml"}),
        ("train --model resnet15", {"resnet152"}),
        ("train --data p", {"photos/"}),
        ("evaluate cat", {"cats"}),
    ],
)
def test_names_are_completed(folder: Path, words: str, completed: set[str]) -> None:
    asked = {"_RESNET_OPS_COMPLETE": "complete_bash", "COMP_WORDS": f"resnet-ops {words}"}
    environment = {**os.environ, **asked, "COMP_CWORD": str(len(words.split()))}
    answer = subprocess.run(COMMAND, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) == completed
