"""What others have named reaches a terminal as text, and a shell as one argument."""

import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnet_ops.cli import evaluate, tune
from resnet_ops.cli.config_options import runs_dir_option
from resnet_ops.cli.console import CTRL_C, Output, WordConsole, err, literal, print_table, report_error, table
from rich.markup import escape
from rich.progress import Progress
from rich.text import Text
from safetensors.numpy import save

from resnet_ops.errors import INTERRUPTED, UserError
from resnet_ops.export.exported_files import not_onnx
from resnet_ops.formatting import visible
from resnet_ops.runs import Run
from tests.conftest import Ended

Cli = Callable[..., Ended]
# Clears the screen, sets the window's title, returns to the begin of the line, and reverses the text.
EVIL = "cat\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"
SHOWN = r"cat\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"

WEIGHTS = save({"weight": np.zeros(1, np.float32)})


def test_controls_are_written_out_and_lines_kept() -> None:
    assert visible(EVIL) == SHOWN
    assert visible("a\tb\nEspa\u00f1a \u6f22 \u00a0 \U0001f600") == "a\tb\nEspa\u00f1a \u6f22 \u00a0 \U0001f600"


def test_a_name_is_one_line() -> None:
    assert Text.from_markup(literal("a\nb\u2028[bold]c")).plain == r"a\nb\u2028[bold]c"


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


TRIALS = [
    ["[bold]12", "[bold]resnet20 weight_decay=0.0001", "0.0123", "10", "97.21%", "96.94%", "269,722", "48", "finished"],
    ["3", "plain8 weight_decay=0.00055 batch_size=128", "0.8", "3", "44.01%", "43.18%", "74,618", "9", "stopped"],
    ["104", "resnet8", "0.1", "", "", "", "", "0", "failed"],
]


@pytest.mark.parametrize(("width", "left_out"), [(60, 4), (80, 4), (110, 1), (120, 0), (None, 0)])
def test_a_table_keeps_its_figures_whole_and_leaves_out_what_does_not_fit(width: int | None, left_out: int) -> None:
    console = WordConsole(file=io.StringIO(), width=width or 40, force_terminal=width is not None, color_system=None)
    print_table(console, tune.COLUMNS, TRIALS, tune.OPTIONAL, ("network", "status"))
    assert isinstance(console.file, io.StringIO)
    header, *lines = re.sub(r"\x1b\[\d*m", "", console.file.getvalue()).rstrip().split("\n")
    names = [name.removeprefix(">") for name in tune.COLUMNS]
    assert {name for name in names if name not in header} == set(tune.OPTIONAL[:left_out])
    assert len(lines) == len(TRIALS)
    assert width is None or max(map(len, (header, *lines))) <= width
    for line, row in zip(lines, TRIALS, strict=True):
        shown = dict(zip(names, row, strict=True))
        for name in names:
            whole = shown[name].removeprefix("[bold]")
            if name in header and (name != "network" or width != 60):
                assert whole in line
    assert ("\u2026" in "".join(lines)) == (width == 60)


@pytest.mark.parametrize("name", ["a b", "a; touch owned #", "$(touch owned)", "it's"])
def test_suggested_commands_are_safe_to_paste(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    resumed = shlex.split(Run(folder / "mine").resume_command())
    assert resumed == ["resnet-ops", "train", "--resume", "mine", "--runs-dir", str(folder)]
    assert shlex.split(runs_dir_option(folder)) == ["--runs-dir", str(folder)]
    remedy = not_onnx(folder, WEIGHTS).remedy
    assert shlex.split(remedy.removeprefix("Export it: ")) == ["resnet-ops", "export", str(folder), "--onnx"]


def on_terminal(text: str, width: int, **options: object) -> list[str]:
    console = WordConsole(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    console.print(text, soft_wrap=True, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


RESUME = "resnet-ops train --resume mine --runs-dir /a/long/folder/of/runs"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (f"note: the images are no longer there. Where they are elsewhere: {RESUME}", RESUME),
        (f"Training was stopped, at once. Resume with: {RESUME}.", f"{RESUME}."),
        ("  request  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/classify?top=5'", None),
        ("Needs the client of it. Get it with pip install 'resnet-ops[hub]', or not", "pip install 'resnet-ops[hub]',"),
    ],
)
def test_a_command_to_copy_is_one_line(
    text: str, command: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = on_terminal(escape(text), 40)
    assert any(line.startswith(command or text) for line in lines), lines
    assert " ".join(lines) == text
    monkeypatch.setattr(err, "_width", 40)
    monkeypatch.setattr(err, "_force_terminal", True)
    report_error(UserError("It failed.", text), 2, as_json=False, debug=False)
    told = capsys.readouterr().err
    assert (command or text.strip().partition("  ")[2]) in told, told


def test_further_lines_of_a_row_begin_where_its_sentence_does() -> None:
    lines = on_terminal("ok  copies  there are no duplicates within a split of these images", 40, hang=12)
    assert lines == ["ok  copies  there are no duplicates", "            within a split of these", "            images"]
    assert max(map(len, lines)) <= 40


LONG_PATH = "photos of mine/0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0.jpg"


@pytest.mark.parametrize(
    ("detail", "lines"),
    [
        (
            "bad/a.jpg (train, hat) = bad/b.jpg (train, hat)",
            ["   bad/a.jpg (train, hat)", "     = bad/b.jpg (train, hat)"],
        ),
        ("a b.jpg = c.jpg", ["   a b.jpg = c.jpg"]),
        (
            f"{LONG_PATH}: cannot be read as it is cut off there",
            [f"   {LONG_PATH}:", "     cannot be read as it is cut off", "     there"],
        ),
        (
            f"a.jpg (val, hat) looks like {LONG_PATH} (train, hat)",
            ["   a.jpg (val, hat)", f"     looks like {LONG_PATH} (train, hat)"],
        ),
        ("hat: 3", ["   hat: 3"]),
    ],
)
def test_no_path_is_broken(
    detail: str, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(as_json=True)
    monkeypatch.setattr(err, "_width", 40)
    monkeypatch.setattr(err, "_force_terminal", True)
    output.show_detail(detail, indent=3)
    assert re.sub(r"\x1b\[\d*m", "", capsys.readouterr().err).splitlines() == lines
    monkeypatch.setattr(err, "_force_terminal", False)
    output.show_detail(detail, indent=3)
    assert capsys.readouterr().err == f"   {detail}\n"


@pytest.mark.parametrize(("width", "titles"), [(120, 5), (80, 3), (40, 3)])
def test_paths_in_a_table_can_be_copied(width: int, titles: int) -> None:
    console = WordConsole(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    row = ["shoe", "boot", "97.1%", "0.2%", LONG_PATH]
    print_table(console, evaluate.SUSPECT_COLUMNS, [row], ("of the label", "probability"))
    assert isinstance(console.file, io.StringIO)
    header, line = console.file.getvalue().splitlines()
    assert (LONG_PATH in line, sum(name.strip(">") in header for name in evaluate.SUSPECT_COLUMNS)) == (True, titles)


def test_what_is_said_at_ctrl_c_fits_beside_what_the_terminal_echoes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(err, "_width", 40)
    monkeypatch.setattr(err, "_force_terminal", True)
    report_error(UserError("Requests of this were not answere"), INTERRUPTED, as_json=False, debug=False)
    err.print("It stops as soon as all it has is stored", soft_wrap=True, width=err.width - CTRL_C)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().err).splitlines()
    assert lines == [
        "interrupted: Requests of this were not",
        "  answere",
        "It stops as soon as all it has is",
        "stored",
    ]
