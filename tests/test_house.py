"""Names of the house: each once, each findable, docstrings that begin with what is done."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(file for room in ("resnet_ops", "cli") for file in (ROOT / room).rglob("*.py"))
# What each room has one of, under the same name: whoever knows one room knows where to look in the next.
IN_EVERY_ROOM = {"__init__", "config", "job", "preflight", "results"}
SHORT_ON_PURPOSE: dict[str, str] = {
    "cli/doctor.py": "one file for each command",
    "cli/recipes.py": "one file for each command",
    "resnet_ops/__main__.py": "Python asks for it",
    "resnet_ops/results.py": "below everything that returns a result",
}
# Openings that tell what a thing is about, and not what it does.
NOT_A_VERB = {"What", "Whether", "Who", "Where", "Which", "How", "Why", "When", "Those", "That", "As", "Likewise"}
DIALECT = {"found", "told", "made", "look", "shown", "inside", "said", "wanted", "unfit", "marked", "everywhere"}


def _definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def test_each_module_name_is_used_once() -> None:
    places = defaultdict(list)
    for file in (ROOT / "resnet_ops").rglob("*.py"):
        places[file.stem].append(str(file.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1 and name not in IN_EVERY_ROOM} == {}


def test_each_class_name_is_used_once() -> None:
    places = defaultdict(list)
    for file in FILES:
        for node in _definitions(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_module_is_worth_opening() -> None:
    short = {
        str(file.relative_to(ROOT))
        for file in FILES
        if file.name != "__init__.py" and len(file.read_text().splitlines()) < 40
    }
    assert short == set(SHORT_ON_PURPOSE)


def test_docstrings_begin_with_what_is_done() -> None:
    begin_otherwise = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {doc.splitlines()[0]}"
        for file in FILES
        for node in _definitions(ast.parse(file.read_text()))
        if (doc := ast.get_docstring(node)) and doc.split()[0].rstrip(",.:") in NOT_A_VERB
    ]
    assert begin_otherwise == []


def test_things_bear_names_of_the_field() -> None:
    """Names of modules, classes, functions, parameters, fields and variables."""
    dialect = []
    for file in FILES:
        names = {file.stem: 1}
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.setdefault(node.name.strip("_").lower(), node.lineno)
            elif isinstance(node, ast.arg):
                names.setdefault(node.arg.strip("_"), node.lineno)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.setdefault(node.id.strip("_"), node.lineno)
        dialect += [f"{file.relative_to(ROOT)}:{names[name]} {name}" for name in sorted(DIALECT & names.keys())]
    assert dialect == []
