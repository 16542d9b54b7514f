"""The pages, and the lines of them that are meant to be typed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_TABLE = re.compile(r"^\| `(resnet-ops .*?)` \|", re.MULTILINE)
OURS = re.compile(r"^(?:[A-Z_]+=\S+ )*resnet-ops\b ?")


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return [body for told, body in FENCED.findall(page.read_text()) if told == kind]


def typed(page: Path) -> Iterator[str]:
    """What the page would have its reader type: after a prompt, or all of a block without one; then its tables."""
    for block in [*blocks(page, ""), *blocks(page, "console")]:
        lines = block.splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from prompted or [line for line in lines if line.startswith(("resnet-ops ", "make "))]
    yield from IN_TABLE.findall(page.read_text())


def commands(page: Path) -> Iterator[str]:
    """What comes after `resnet-ops` in the page, once each."""
    yield from dict.fromkeys(OURS.sub("", line) for line in typed(page) if OURS.match(line))


def arguments(line: str) -> list[str]:
    """What the shell would pass on: no comment, and nothing of a pipe or of a file to write to."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split = True
    words = list(lexer)
    end = next((index for index, word in enumerate(words) if word in ("|", ">", "&", "&&", ";")), len(words))
    return words[:end]


def write_files(page: Path, folder: Path) -> None:
    """The files that the page has its reader write, named by their first line."""
    for body in blocks(page, "toml"):
        (folder / body.splitlines()[0].removeprefix("# ")).write_text(body)
