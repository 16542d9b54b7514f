"""Recipes: those that ship are valid; files are checked strictly; typed options override them."""

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_ops.errors import UserError
from resnet_ops.recipe_config import Recipe
from resnet_ops.recipes import reading
from tests.conftest import Ended
from tests.integration.test_cli import refused

Cli = Callable[..., Ended]


@pytest.mark.parametrize("name", reading.recipe_names())
def test_each_that_ships_can_be_listed_printed_and_copied(name: str, cli: Cli, tmp_path: Path) -> None:
    assert reading.describe(name) in " ".join(cli("recipes").out.split())
    printed = cli("recipes", name).out
    copy = tmp_path / "mine.toml"
    copy.write_text(printed)
    assert reading.read_recipe(str(copy)) == reading.read_recipe(name) == tomllib.loads(printed)
    assert set(reading.read_recipe(name)) <= set(Recipe.model_fields)
    assert cli("recipes", name, "--json").json["options"] == reading.read_recipe(name)
    reading.configure(recipe=name)


def test_the_paper_recipe_is_64k_steps() -> None:
    config = reading.configure(recipe="paper")
    assert config.epochs * math.ceil(50_000 / config.batch_size) == pytest.approx(64_000, rel=2e-3)


def test_typed_options_override_the_environment_the_file_and_its_recipe(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        'recipe = "fast"\nmodel = "resnet8"\nepochs = 9\nbatch_size = 64\nlr = 1\nname = "m"\nruns_dir = "there"\n'
    )
    ended = cli("train", "--config", "mine.toml", "--epochs", 1, "--batch-size", 128, "--json")
    assert ended.code == 0, ended.err
    config = json.loads(Path("there/m/run.json").read_text())["config"]
    fast = reading.read_recipe("fast")
    expected = {"recipe": "mine.toml", "model": "resnet8", "epochs": 1, "batch_size": 128, "lr": 1.0}
    assert {name: config[name] for name in expected} == expected
    assert config["weight_decay"] == fast["weight_decay"]
    assert config["nesterov"] is True
    rows = dict(line.split(maxsplit=1) for line in ended.err.splitlines() if " " in line)
    assert rows["recipe"].startswith("mine.toml: SGD, learning rate 1,")
    assert rows["steps"].startswith("12: 1 epoch of 12, batch size 128")
    assert rows["run"] == "m"
    assert "options" not in rows  # all that differs from the defaults is the recipe's

    monkeypatch.setenv("RESNET_OPS_RUNS_DIR", "elsewhere")
    refused(cli("train", "--recipe", "mine.toml", "--data", "digit"), "Did you mean digits?")
    assert cli("train", "--recipe", "mine.toml", "--epochs", 1).code == 0
    assert Path("elsewhere/m/run.json").is_file()
    refused(cli("train", "--resume", "m", "--recipe", "fast"), "--recipe cannot be changed")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", ["mine.toml: there is no option 'epoch'", "Did you mean epochs?"]),
        ("[train]\nepochs = 3", ["no option 'train'"]),
        ("epochs = '3'", ["mine.toml: epochs '3': a whole number is needed."]),
        ("epochs = true", ["mine.toml: epochs True: a whole number is needed."]),
        ("nesterov = 1", ["mine.toml: nesterov 1: true or false is needed."]),
        ("lr = -1", ["mine.toml: lr", "greater than 0"]),
        ("lr = nan", ["mine.toml: lr"]),
        ("runs_dir = 5", ["mine.toml: runs_dir"]),
        ("schedule = 'cosin'", ["mine.toml: schedule", "Did you mean cosine?"]),
        ("milestones = [0.5]", ["mine.toml: milestones", "valid string"]),
        ("epochs = 1979-05-27", ["mine.toml: epochs"]),
        ("lr = 0.1\nepochs =\n", ["mine.toml is not TOML", "line 2"]),
        ("recipe = 'fsat'", ["Unknown recipe 'fsat'"]),
        ("recipe = 'mine.toml'", ["Unknown recipe 'mine.toml'"]),
        (b"\xff\xff", ["mine.toml is not TOML"]),
        (None, ["mine.toml cannot be read: No such file"]),
    ],
)
def test_a_wrong_file_gets_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes | None, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("mine.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(cli("train", "--recipe", "mine.toml"), *words)
    assert not list(tmp_path.rglob("run.json"))


def test_whole_numbers_are_taken_for_floats(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("lr = 1\nwait = 5\n")
    assert reading.configure(recipe=str(tmp_path / "mine.toml")).lr == 1.0


def test_an_unknown_recipe() -> None:
    with pytest.raises(UserError, match=r"Unknown recipe 'papr'.*Did you mean paper"):
        reading.recipe_text("papr")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_synchronous_batchnorm_needs_gpus(cli: Cli) -> None:
    refused(cli("train", "--sync-batchnorm"), "--sync-batchnorm needs GPUs")
