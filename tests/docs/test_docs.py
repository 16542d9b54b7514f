"""The pages: every command that they and the README show is one, and the reference has all that there is."""

import importlib
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resnet_ops.cli.commands import COMMANDS

import resnet_ops
from resnet_ops.config import TrainConfig
from tests.conftest import Ended
from tests.docs.reading import DOCS, PAGES, ROOT, TUTORIAL, arguments, blocks, commands, write_files

# Where a command begins to work, of those that import nothing large for it.
WORK = ("resnet_ops.data.audit.check_data", "resnet_ops.data.discovery.discover",
        "resnet_ops.orchestration.local.up", "resnet_ops.orchestration.local.down",
        "resnet_ops.runs.find")  # fmt: skip


class WorkBeginsError(BaseException):
    """The command was understood; no handler of errors takes this for one."""


def begin(*_: object, **__: object) -> None:
    raise WorkBeginsError


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the files that pages have users write; commands stop when they have read all they were given."""
    for file in (ROOT / "cli").glob("*.py"):  # or a command that is first used now would keep what is put in its way
        importlib.import_module(f"resnet_ops.cli.{file.stem}")
    for name, module in list(sys.modules.items()):
        if name.startswith("resnet_ops.cli.") and hasattr(module, "importing"):
            monkeypatch.setattr(module, "importing", begin)
    for place in WORK:
        module, _, function = place.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), function, begin)
    for page in PAGES:
        write_files(page, tmp_path)
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


@pytest.mark.slow  # as the pages are
def test_what_is_done_from_python_works(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = blocks(DOCS / "reference/python.md", "python")
    names: dict[str, Any] = {}
    for program in programs:
        exec(compile(program, "python.md", "exec"), names)
    assert names["exported"].validated
    assert names["raw"].validated
    assert names["verified"].validated
    assert names["search"].best.val_accuracy > 0
    assert names["result"].failed == 0
    for name in resnet_ops.__all__:
        assert re.search(rf"\b{name}\b", (DOCS / "reference/python.md").read_text()), name


def test_pages_are_made_of_every_command_and_option() -> None:
    sys.path.insert(0, str(DOCS))
    text = "\n".join(importlib.import_module("from_code").commands())
    for command in itertools.chain(*COMMANDS.values()):
        assert f"## resnet-ops {command}\n" in text
    assert "## resnet-ops cluster template\n" in text
    for field in TrainConfig.model_fields:
        assert f"`--{field.replace('_', '-')}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_column_of_a_table_has_a_header(page: Path) -> None:
    lines = page.read_text().splitlines()
    headers = [line for line, below in itertools.pairwise(lines) if re.fullmatch(r"\|(?:\s*:?-+:?\s*\|)+", below)]
    assert not [line for line in headers if any(not cell.strip() for cell in line.strip("|").split("|"))]


def test_commands_are_found() -> None:
    found = {page.name: len(list(commands(page))) for page in PAGES}
    assert sum(found.values()) > 90, found
    assert next(commands(TUTORIAL)).startswith("train --model plain8")
