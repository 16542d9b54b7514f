"""The pages: every command that they and the README show is one, and the tutorial's do what it says."""

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from resnet_ops.config import TrainConfig
from tests.conftest import Ended

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*resnet-ops\b(.*)$", re.MULTILINE)
IN_TABLE = re.compile(r"^\| `resnet-ops (.*?)` \|", re.MULTILINE)
TUTORIAL = DOCS / "tutorial.md"
# Where a command begins to work, of those that import nothing large for it.
WORK = ("resnet_ops.data.check.check", "resnet_ops.orchestration.local.up", "resnet_ops.orchestration.local.down",
        "resnet_ops.runs.find")  # fmt: skip


class WorkBeginsError(BaseException):
    """The command was understood; no handler of errors takes this for one."""


def begin(*_: object, **__: object) -> None:
    raise WorkBeginsError


def commands(page: Path) -> Iterator[str]:
    """What comes after `resnet-ops` in the page's blocks and tables, once each."""
    text = page.read_text()
    blocks = [body for kind, body in FENCED.findall(text) if kind in ("", "console")]
    found = [line for block in blocks for line in TYPED.findall(block)]
    yield from dict.fromkeys(line.strip() for line in [*found, *IN_TABLE.findall(text)])


def arguments(line: str) -> list[str]:
    """What the shell would pass on: no comment, and nothing of a pipe or of a file to write to."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split = True
    words = list(lexer)
    end = next((index for index, word in enumerate(words) if word in ("|", ">", "&", "&&", ";")), len(words))
    return words[:end]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the files that pages have users write; commands stop when they have read all they were given."""
    (script,) = entry_points(group="console_scripts", name="resnet-ops")
    script.load()
    for name, module in list(sys.modules.items()):
        if name.startswith("resnet_ops.cli.") and hasattr(module, "importing"):
            monkeypatch.setattr(module, "importing", begin)
    for place in WORK:
        module, _, function = place.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), function, begin)
    for page in PAGES:
        for kind, body in FENCED.findall(page.read_text()):
            if kind == "toml":
                (tmp_path / body.splitlines()[0].removeprefix("# ")).write_text(body)
    (tmp_path / "mine.toml").write_text((ROOT / "resnet_ops/recipes/fast.toml").read_text())
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page: Path, stopped: Path, cli: Callable[..., Ended]) -> None:
    for line in commands(page):
        try:
            ended = cli(*arguments(line))
        except WorkBeginsError:
            continue
        assert ended.code == 0, f"resnet-ops {line}\n{ended.err}"  # it has shown what it has to show


def test_the_tutorial_goes_as_it_says(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = {"train": ["--epochs", "1"], "study": ["--epochs", "1", "--depths", "8", "--seeds", "1"],
               "bench": ["--batch", "1", "--seconds", "0.05"]}  # fmt: skip
    for line in commands(TUTORIAL):
        words = arguments(re.sub(r"--model (plain|resnet)56", r"--model \g<1>14", line))
        ended = cli(*words, *shorter.get(words[0], []))  # of an option that is given twice the last one counts
        assert ended.code == 0, f"resnet-ops {line}\n{ended.err}"
    assert (tmp_path / "depth.html").is_file()
    assert (tmp_path / "runs/degradation-digits/degradation.png").is_file()
    assert (tmp_path / "runs/degradation-digits/norms.png").is_file()


def test_what_is_done_from_python_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, program),) = [
        block for block in FENCED.findall((DOCS / "reference/python.md").read_text()) if block[0] == "python"
    ]
    exec(compile(program, "python.md", "exec"), {})
    assert "True" in capsys.readouterr().out  # it was proven


def test_pages_are_made_of_every_command_and_option() -> None:
    sys.path.insert(0, str(DOCS))
    text = "\n".join(importlib.import_module("from_code").commands())
    (script,) = entry_points(group="console_scripts", name="resnet-ops")
    app = script.load().__globals__["app"]
    for command in app.registered_commands:
        assert f"## resnet-ops {command.name}\n" in text
    assert "## resnet-ops cluster template\n" in text
    for field in TrainConfig.model_fields:
        assert f"`--{field.replace('_', '-')}`" in text


def test_commands_are_found() -> None:
    found = {page.name: len(list(commands(page))) for page in PAGES}
    assert sum(found.values()) > 90, found
    assert next(commands(TUTORIAL)).startswith("train --model plain8")
