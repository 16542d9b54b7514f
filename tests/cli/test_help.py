"""`--help`: complete at any width, with the field's terms, and summaries that are those of the commands."""

import re
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer

from resnet_ops.runs import create
from tests.conftest import Ended

Cli = Callable[..., Ended]


def walk(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, *names, name)


def commands() -> list[tuple[tuple[str, ...], Any]]:
    (script,) = entry_points(group="console_scripts", name="resnet-ops")
    return list(walk(typer.main.get_command(script.load().__globals__["app"])))


@pytest.mark.parametrize("width", [60, 80])
def test_nothing_is_cut(cli: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for names, command in commands():
        text = cli(*names, "--help")
        assert text.code == 0
        assert "…" not in text.out, names
        assert max(map(len, text.out.splitlines())) <= width, names
        words = set(re.findall(r"[^\s│,]+", text.out))
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            spelled = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.metavar]
            assert set(spelled) <= words, names
            assert not re.search(r"<\w+>", text.out), names


def test_every_option_is_described() -> None:
    for names, command in commands():
        for parameter in command.params:
            assert parameter.help.endswith("."), (names, parameter.name)
            assert len(parameter.help) <= 280, (names, parameter.name)


def test_summaries_are_those_of_the_commands() -> None:
    (_, root), *_ = commands()
    for _, name, summary in root.summaries(None):
        assert summary == " ".join(root.commands[name].help.split("\n\n")[0].split())


def test_what_people_use_first_is_shown_first(cli: Cli) -> None:
    text = cli("train", "--help").out
    first, _, rest = text.partition("─ Options ─")
    for name in ("model", "data", "recipe", "epochs", "batch-size", "lr", "name", "resume", "nodes", "gpus-per-node",
                 "device", "cluster"):  # fmt: skip
        assert f"--{name} " in first, name
    assert len(re.findall(r"^│ --", first, re.MULTILINE)) <= 16
    panels = re.findall(r"^╭─ (.+?) ─", rest, re.MULTILINE)
    assert all(panel.startswith("Advanced: ") for panel in panels[:-1])
    assert panels[-1] == "Examples"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ("gradient accumulation", "mixed precision", "learning rate", "momentum", "data augmentation",
                   "weight decay", "label smoothing", "warm-up", "clip gradients to this norm (0: off)",
                   "images per step (global batch size", "random seed", "epochs")),
        ("tune", ("early stopping", "maximum concurrent trials", "grid", "population based training", "tpe")),
        ("export", ("quantization", "half precision", "opset", "execution provider", "logits")),
    ],
)  # fmt: skip
def test_the_fields_words_are_found(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = " ".join(cli(command, "--help").out.lower().split())
    for word in words:
        assert word in text, word


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (("train", "{photos}"), "Did you mean --data {photos}?"),
        (("tune", "{photos}"), "Did you mean --data {photos}?"),
        (("evaluate", "mine", "cifar10"), "Did you mean --data cifar10?"),
        (("study", "degradation", "{photos}"), "Did you mean --data {photos}?"),
        (("train", "nowhere"), "resnet-ops train takes no argument nowhere. See resnet-ops train --help."),
        (("doctor", "{photos}"), "See resnet-ops doctor --help."),
    ],
)
def test_a_path_too_many_is_said_to_be_for_data(cli: Cli, tmp_path: Path, command: tuple[str, ...], meant: str) -> None:
    ended = cli(*(each.format(photos=tmp_path) for each in command))
    assert (ended.code, meant.format(photos=tmp_path) in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (("train", "--name", "mine"), "Run mine exists already"),
        (("tune", "--name", "mine"), "Run mine exists already"),
        (("study", "degradation", "--name", "mine"), "Run mine exists already"),
        (("train", "--resume", "mien"), "Did you mean mine?"),
        (("export", "mien"), "Did you mean mine?"),
        (("export", "imagenett"), "Did you mean imagenet?"),
        (("evaluate", "mien"), "Did you mean mine?"),
        (("predict", "mine", "1.png"), "Run mine has no exported file."),
        (("serve", "nope"), "There is no run called 'nope'"),
    ],
)
def test_a_wrong_name_is_refused_before_torch_is_imported(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], refusal: str
) -> None:
    run = create(tmp_path, "mine", "", overwrite=False)
    run.record_file.write_text("{}")
    monkeypatch.setattr("resnet_ops.cli.startup.gc.disable", _fail)  # the first that is done to import it
    ended = cli(*command, "--runs-dir", tmp_path)
    assert (ended.code, refusal in ended.err) == (2, True), ended.err
    assert "'nope'" not in ended.err or "Did you mean" not in ended.err


def _fail() -> None:
    raise AssertionError("torch is imported")
