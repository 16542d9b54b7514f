"""`resnet-ops init`: its recipe trains as no recipe would, and every option in it is one."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_ops.config import TrainConfig
from resnet_ops.recipes.reading import configure
from resnet_ops.training.preflight import check_training
from tests.conftest import Ended
from tests.data.samples import shades, write_class_folders

Cli = Callable[..., Ended]


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adamw"}, {"image_size": "16x24", "model": "plain14"}, {"test_fraction": 0.2}],
    ids=lambda options: "-".join(options) or "nothing",
)
def test_a_recipe_of_the_defaults_is_the_defaults(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "my photos", shades({"left": 200, "right": 60}, 30, (40, 30)))
    typed = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    ended = cli("init", "--data", "my photos", *typed, "--output", "mine.toml", "--json")
    assert ended.code == 0, ended.err
    _, without = check_training(TrainConfig.of(data=str(tmp_path / "my photos"), **options), "cpu")
    _, by_recipe = check_training(configure(recipe="mine.toml"), "cpu")
    assert by_recipe.model_dump(exclude={"recipe"}) == without.model_dump(exclude={"recipe"})
    assert {"batch-size", "flip"} <= ended.json["choices"].keys()
    again = cli("init", "--data", "my photos", "--output", "mine.toml")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert cli("init", "--data", "my photos", "--output", "mine.txt").code == 2


def test_every_option_of_the_file_is_one_with_its_default(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert cli("init", "--output", file).code == 0
    text = file.read_text()
    commented = dict(re.findall(r"^# ([a-z_]+) = (.+)$", text, re.MULTILINE))
    assert len(commented) > 50
    for name, value in commented.items():
        default = TrainConfig.default(name)
        assert (default is None) == (value == "..."), name
        if default is not None:
            assert tomllib.loads(f"x = {value}")["x"] in (default, str(default)), name
    given = tomllib.loads(text)
    assert not given.keys() & commented.keys()
    everything = {name: value for name, value in commented.items() if value != "..."}
    file.write_text(text + "\n".join(f"{name} = {value}" for name, value in everything.items()))
    assert configure(recipe=str(file)).data == "digits"
