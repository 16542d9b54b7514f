"""What others have named reaches a terminal as text, and a shell as one argument."""

import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnet_ops.cli.config_options import runs_dir_option
from resnet_ops.cli.console import WordConsole, table
from rich.markup import escape
from rich.progress import Progress
from rich.text import Text
from safetensors.numpy import save

from resnet_ops.export.exported_files import not_onnx
from resnet_ops.formatting import visible
from resnet_ops.runs import Run
from resnet_ops.training.job import resume_command
from tests.conftest import Ended

Cli = Callable[..., Ended]
# Clears the screen, sets the window's title, returns to the begin of the line, and reverses the text.
EVIL = "cat\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"
SHOWN = r"cat\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"

WEIGHTS = save({"weight": np.zeros(1, np.float32)})


def test_controls_are_written_out_and_lines_kept() -> None:
    assert visible(EVIL) == SHOWN
    assert visible("a\tb\nEspa\u00f1a \u6f22 \u00a0 \U0001f600") == "a\tb\nEspa\u00f1a \u6f22 \u00a0 \U0001f600"


def test_no_way_of_printing_lets_a_command_through() -> None:
    console = WordConsole(file=io.StringIO(), width=300, force_terminal=True, highlight=False)
    rows = table("class", title=escape(EVIL))
    rows.add_row(escape(EVIL))
    console.print(f"[bold]{escape(EVIL)}[/]", soft_wrap=True)
    console.print(rows)
    console.print(Text(EVIL))
    with Progress(console=console) as progress:
        progress.add_task(escape(EVIL), total=1)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert printed.count(r"cat\x1b[2J") >= 5  # rich itself drops some of the others
    rest = re.sub(r"\x1b\[[\d;?]*[mhlAK]", "", printed)  # colors, and the progress bar's own
    assert not re.search(r"\x1b|\x07|\x9b|\u202e", rest)


def test_names_of_classes_do_not_command_a_terminal(tmp_path: Path, cli: Cli) -> None:
    for name in (EVIL, "dog"):
        (tmp_path / name).mkdir()
        for value in range(10):
            Image.new("L", (8, 8), value).save(tmp_path / name / f"{value}.png")
    ended = cli("data", "check", tmp_path)
    assert "\\x1b[2J" in ended.out + ended.err
    assert not re.search(r"\x1b\[2J|\x07|\x9b", ended.out + ended.err)


@pytest.mark.parametrize("name", ["a b", "a; touch owned #", "$(touch owned)", "it's"])
def test_suggested_commands_are_safe_to_paste(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    resumed = shlex.split(resume_command(Run(folder / "mine")))
    assert resumed == ["resnet-ops", "train", "--resume", "mine", "--runs-dir", str(folder)]
    assert shlex.split(runs_dir_option(folder)) == ["--runs-dir", str(folder)]
    remedy = not_onnx(folder, WEIGHTS).remedy
    assert shlex.split(remedy.removeprefix("Export it: ")) == ["resnet-ops", "export", str(folder), "--onnx"]
