"""The house: imports go down only, and looking at the help needs neither torch nor Ray."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import resnet_ops

ROOT = Path(__file__).parents[1]
# Each room, and the rooms below it that it may look into.
BASE = {
    "errors",
    "formatting",
    "environment",
    "machine",
    "files",
    "config_base",
    "cluster_config",
    "recipe_config",
    "config",
    "results",
    "stop_request",
    "run_records",
    "runs",
    "class_metrics",
    "reliability",
    "architectures",
}
FLOORS = {
    "errors": set(),
    "environment": set(),
    "machine": set(),
    "formatting": set(),
    "files": {"errors", "formatting"},
    "locks": {"errors", "files", "machine"},
    "config_base": {"errors", "formatting"},
    "significance": {"formatting"},
    "results": set(),
    "stop_request": {"errors"},
    "cluster_config": {"config_base"},
    "recipe_config": {"errors", "config_base"},
    "config": {"errors", "files", "config_base", "cluster_config", "recipe_config"},
    "class_metrics": {"formatting", "significance", "config"},
    "reliability": {"results"},
    "run_records": {"formatting", "files", "config", "results"},
    "runs": {"errors", "machine", "files", "locks", "config_base", "config", "run_records"},
    "recipes": {"errors", "formatting", "config_base", "recipe_config", "config", "results"},
    "architectures": {"errors"},
    "models": {"architectures", "errors"},
    "data": BASE | {"locks"},
    "orchestration": {
        "errors",
        "environment",
        "machine",
        "files",
        "config_base",
        "cluster_config",
        "results",
        "stop_request",
    },
    "tracking": BASE,
    "weights": BASE | {"models", "data"},
    "training": BASE | {"significance", "recipes", "models", "data", "weights", "orchestration", "tracking"},
    "tuning": BASE | {"significance", "recipes", "models", "data", "weights", "orchestration", "tracking", "training"},
    "export": BASE | {"locks", "significance", "models", "data", "weights", "training"},
    "serving": BASE | {"orchestration", "data", "export"},
    "reporting": BASE | {"significance", "data", "tuning", "training", "export"},
    "evaluation": BASE | {"significance", "data", "training", "export", "reporting"},
    "study": BASE | {"significance", "recipes", "models", "data", "training", "tuning", "reporting"},
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


def test_orchestration_knows_where_work_runs_and_not_what_it_is() -> None:
    known = {"ConnectionConfig", "JobConfig", "ClusterConfig", "NodeRange"}
    for file in (ROOT / "resnet_ops" / "orchestration").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert "resnet_ops.config" not in modules, file.name
            if isinstance(node, ast.ImportFrom) and node.module in ("resnet_ops", "resnet_ops.config"):
                found = {a.name for a in node.names}
                assert "config" not in found, file.name
                assert node.module == "resnet_ops" or found <= known, f"{file.name} imports {found - known}"


def test_every_room_has_its_floor() -> None:
    rooms = {p.stem for p in (ROOT / "resnet_ops").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == set(FLOORS)  # which name what is in the others


def test_the_library_never_imports_the_command_line() -> None:
    for file in (ROOT / "resnet_ops").rglob("*.py"):
        assert not imports(file) & {"cli", "cluster"}, file


def modules_imported(file: Path) -> Iterator[tuple[Path, str]]:
    """The modules that a file of tests imports, wherever in it, and those that other files do that it imports."""
    seen, files = set(), [file]
    for one in files:
        for node in ast.walk(ast.parse(one.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in modules:
                yield one, module
                path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
                if module.startswith("tests.") and path not in seen:
                    seen.add(path)
                    files.append(path)


def test_tests_for_a_gpu_run_wherever_this_package_is_installed() -> None:
    """A GPU is often rented for minutes: they need what `pip install resnet-ops` brings, and pytest, and no more."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^a-z0-9-]", line.lower())[0] for line in project["dependencies"]}
    there = {"PIL" if name == "pillow" else name.removesuffix("-gpu") for name in names}
    there |= {"pytest", "resnet_ops", "tests", *sys.stdlib_module_names}
    folder = ROOT / "tests" / "gpu"
    for start in (*folder.glob("*.py"), ROOT / "tests" / "conftest.py"):
        for file, module in modules_imported(start):
            assert module.split(".")[0] in there, f"{file.relative_to(ROOT)} imports {module}"
    assert len(list(modules_imported(folder / "test_exports.py"))) > 30  # or the walk finds nothing


def private_ray(file: Path, *, attributes: bool = True) -> list[str]:
    """Where a file imports private names of Ray, or touches private attributes of what is not its own."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif attributes and isinstance(node, ast.Attribute) and ast.unparse(node.value) not in OWN:
            names = [f"ray.{node.attr}"] if not node.attr.startswith("__") else []
        parts = [name.split(".") for name in names]
        if any(p[0] == "ray" and any(part.startswith(("_", "internal_kv")) for part in p) for p in parts):
            found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    return found


# Whose private attributes are no part of Ray; super() is of what a class overrides, which the signatures' test knows.
OWN = {"self", "cls", "super()", "os", "torch"}
# These alone may, beside the one file: the first says whether it still may, the second asks `ray up` what it takes.
TESTS_OF_RAY = {"tests/orchestration/test_ray_internals.py", "tests/cluster/test_templates.py"}


def test_private_parts_of_ray_are_used_in_one_file() -> None:
    one = ROOT / "resnet_ops/orchestration/ray_internals.py"
    assert len(private_ray(one)) > 30  # or the search finds nothing
    folders = ("resnet_ops", "cli", "cluster", "benchmarks", "docs")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file != one]
    found = [line for file in files for line in private_ray(file)]
    tests = [file for file in (ROOT / "tests").rglob("*.py") if str(file.relative_to(ROOT)) not in TESTS_OF_RAY]
    found += [line for file in tests for line in private_ray(file, attributes=False)]
    assert not found, "\n".join(found)


OURS = {"UserError", "PausedError", "NoRoomError", "PickledFileError", "UnreachableError"}
WORDS = {"cause", "remedy", "what"}  # attributes that hold the text of a message
SEARCHES = {"startswith", "endswith", "removeprefix", "removesuffix", "replace", "partition", "find", "index", "count"}
SEARCHES |= {"search", "match", "fullmatch", "findall", "finditer", "sub"}


def names(node: ast.AST | None) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} if node else set()


def compared_messages(tree: ast.AST) -> list[int]:
    """The lines where code compares or searches the text of an error of ours, or of an event."""
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and names(node.type) & OURS]
    written = {id(call) for handler in handlers for call in ast.walk(handler) if is_str_of(handler.name, call)}

    def is_message(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # error.cause.lower()
            return is_message(node.func.value)
        return id(node) in written or (isinstance(node, ast.Attribute) and node.attr in WORDS)

    found = []
    for node in ast.walk(tree):
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            operands = [node.subject]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
            operands = [node.func.value, *node.args]
        found += [operand.lineno for operand in operands if is_message(operand)]
    return found


def is_str_of(name: str | None, node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and names(node.func) == {"str"} and names(node) == {"str", name}


@pytest.mark.parametrize("folder", ["resnet_ops", "cli"])
def test_no_code_branches_on_the_words_of_a_message(folder: str) -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}"
        for file in (ROOT / folder).rglob("*.py")
        for line in compared_messages(ast.parse(file.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "'is a pickle' not in error.cause",
        "event.what.startswith('Lost: ')",
        "refusal.cause.replace('--nodes ', '--nodes-per-trial ', 1)",
        "re.search('full', error.remedy)",
        "error.cause.lower() == 'x'",
        "try: f()\nexcept (KeyError, UserError) as e: print('full' in str(e))",
    ],
)
def test_code_that_does_is_noticed(code: str) -> None:
    assert compared_messages(ast.parse(code))


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import resnet_ops, sys\nassert set(resnet_ops.__all__) <= set(dir(resnet_ops))\n"
        "print({'torch', 'ray', 'pydantic', 'numpy', 'typer'} & set(sys.modules))\n"
        "from resnet_ops import TrainConfig, UserError\nprint({'torch', 'ray', 'numpy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["set()", "set()"]


def test_public_names_are_where_static_tools_see_them() -> None:
    """What __all__ lists, what TYPE_CHECKING imports, and what is found at runtime are the same."""
    (typed,) = (node for node in ast.parse(Path(resnet_ops.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == set(resnet_ops.__all__)
    for name, (module, attribute) in seen.items():
        assert getattr(resnet_ops, name) is getattr(importlib.import_module(str(module)), attribute)
    with pytest.raises(AttributeError, match="nothing"):
        _ = resnet_ops.nothing


def test_the_package_runs_as_a_program() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "resnet_ops", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"resnet-ops {resnet_ops.__version__}\n"


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "resnet_ops").rglob("__init__.py")}
    assert listed == there | {"resnet_ops.cli", "resnet_ops.cluster"}


def test_a_server_does_without_torch() -> None:
    """Each of its gateways and replicas would hold 600 MB more."""
    code = "import sys, resnet_ops.serving.gateway, resnet_ops.serving.replica\nprint('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


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


@pytest.mark.parametrize(
    ("command", "option", "value", "cause"),
    [
        ("train", "data", "no/such", "no/such does not exist"),
        ("tune", "data", "no/such", "no/such does not exist"),
        ("train", "model", "resnet9", "not a valid depth"),
    ],
)
def test_what_is_not_there_is_said_before_torch_and_ray_are_imported(
    command: str, option: str, value: str, cause: str
) -> None:
    code = (
        "import sys\nfrom resnet_ops.cli.main import run\n"
        f"print(run(['{command}', '--{option}', '{value}']), {{'torch', 'ray'}} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "2 set()", ended.stderr
    assert cause in ended.stderr
