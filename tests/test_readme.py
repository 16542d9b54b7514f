"""What the README tells people to do works."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended
from tests.data.samples import shades, write_class_folders

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ones_own_images_are_a_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", shades({"daisy": 220, "rose": 60}, 40, (16, 12)))
    told = re.findall(r"^resnet-ops (train --data photos) ", README, re.MULTILINE)[0]
    arguments = ["--model", "resnet8", "--name", "flowers", "--epochs", "4"]
    trained = cli(*shlex.split(told), *arguments, "--json")
    assert trained.code == 0, trained.err
    assert "batch size 8 (64 training images are too few for the usual 128)" in trained.err
    exported = cli("export", "flowers", "--onnx", "--json")
    assert exported.code == 0, exported.err
    assert exported.json["images"] == 16


def test_every_command_it_shows_is_one(cli: Callable[..., Ended]) -> None:
    shown = re.findall(r"^\| `resnet-ops (.*?)` \|", (ROOT / "docs/reference/commands.md").read_text(), re.MULTILINE)
    shown += [line.partition("#")[0].strip() for line in re.findall(r"^resnet-ops (.*)$", README, re.MULTILINE)]
    assert len(shown) >= 40
    for line in shown:
        command, *rest = shlex.split(line)
        text = cli(command, "--help").out
        for option in (word for word in rest if word.startswith("--")):
            assert option in text, line


def test_links_lead_somewhere() -> None:
    headings = {line.lstrip("# ").lower().replace(" ", "-") for line in README.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        file, _, heading = target.partition("#")
        assert (ROOT / file).exists(), target
        assert file or heading in headings, target


def test_make_lists_its_targets_and_those_of_the_readme_are_among_them() -> None:
    def make(*arguments: str) -> str:
        return subprocess.run(["make", "--silent", *arguments], cwd=ROOT, text=True, capture_output=True).stdout

    listed = re.findall(r"^make ([\w-]+)", make(), re.MULTILINE)
    assert make("help") == make()
    assert set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)) <= set(listed)
    phony = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert set(listed) <= set(phony)
    assert "resnet-ops data check" in make("--dry-run", "demo").splitlines()[-1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_what_the_readme_writes_is_not_for_git() -> None:
    for written in [*re.findall(r"^resnet-ops .* -o (\S+)", README, re.MULTILINE), "runs/mine/export/model.onnx"]:
        assert subprocess.run(["git", "check-ignore", "-q", "--no-index", written], cwd=ROOT).returncode == 0, written
