"""The house: imports go down only, and looking at the help needs neither torch nor Ray."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room, and the rooms below it that it may look into.
BASE = {"errors", "formatting", "machine", "files", "options", "config", "runs"}
FLOORS = {
    "errors": set(),
    "machine": set(),
    "formatting": set(),
    "files": {"errors", "formatting"},
    "locks": {"errors", "files"},
    "options": {"errors"},
    "config": {"errors", "files", "options"},
    "runs": {"errors", "files", "locks", "options", "config"},
    "recipes": {"errors", "options", "config"},
    "models": {"errors"},
    "data": BASE | {"locks"},
    "orchestration": {"errors", "machine", "files", "options", "config"},
    "tracking": BASE,
    "training": BASE | {"models", "data", "orchestration", "tracking"},
    "tuning": BASE | {"recipes", "models", "data", "orchestration", "tracking", "training"},
    "export": BASE | {"models", "data", "training"},
    "serving": BASE | {"orchestration", "data", "export"},
    "reporting": BASE | {"tuning", "training"},
    "study": BASE | {"recipes", "models", "data", "training", "tuning", "reporting"},
    "doctor": BASE | {"orchestration", "export"},
}


def imports(file: Path) -> set[str]:
    """The rooms of resnet_ops that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "resnet_ops":
            rooms = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            found |= set(rooms)
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("resnet_ops.")}
    return found


@pytest.mark.parametrize("room", FLOORS)
def test_imports_go_down_only(room: str) -> None:
    place = ROOT / "resnet_ops" / room
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    for file in files:
        climbing = imports(file) - FLOORS[room] - {room}
        assert not climbing, f"{file.relative_to(ROOT)} imports {climbing}"


def test_every_room_has_its_floor() -> None:
    rooms = {p.stem for p in (ROOT / "resnet_ops").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOORS)


def test_the_library_never_imports_the_command_line() -> None:
    for file in (ROOT / "resnet_ops").rglob("*.py"):
        assert not imports(file) & {"cli", "cluster"}, file


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "resnet_ops").rglob("__init__.py")}
    assert listed == there | {"resnet_ops.cli", "resnet_ops.cluster"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["serve", "--help"], ["study", "--help"], ["runs"], ["train", "--lr", "-1"]],
)
def test_heavy_imports_wait_until_work_begins(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom resnet_ops.cli.main import run\n"
        f"run({arguments!r})\n"
        "heavy = {'torch', 'ray', 'onnx', 'onnxruntime', 'pyarrow', 'numpy', 'fsspec', 'upath', 'matplotlib'}\n"
        "print('HEAVY', (heavy | {'fastapi'}) & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.splitlines()[-1] == "HEAVY set()"
