"""The reference pages that are written by the code: every command from the Typer app, every field from pydantic.

A page says where by a comment, which is replaced as the page is read: `<!-- commands -->`, or
`<!-- fields of MODULE.CLASS but BASE, BASE -->`, or `<!-- result MODULE.CLASS -->`.
"""

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main

FIELDS = re.compile(r"^<!-- fields of (\S+)\.(\w+)(?: but (.+))? -->$", re.MULTILINE)
RESULT = re.compile(r"^<!-- result (\S+)\.(\w+) -->$", re.MULTILINE)
COMMANDS = "<!-- commands -->"
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", _written)
    return {"parallel_read_safe": True}


def _written(_app: Any, _page: str, source: list[str]) -> None:
    text = source[0]
    if COMMANDS in text:
        text = text.replace(COMMANDS, "\n".join(commands()))
    text = RESULT.sub(lambda match: "\n".join(result(*match.groups())), text)
    source[0] = FIELDS.sub(lambda match: "\n".join(fields(*match.groups())), text)


def commands() -> Iterator[str]:
    """Every command, in the order of `resnet-ops --help`, as Markdown."""
    (script,) = entry_points(group="console_scripts", name="resnet-ops")
    yield from _command("resnet-ops", typer.main.get_command(script.load().__globals__["app"]))


def _command(name: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    if name != "resnet-ops":
        rest = "OPTIONS" if not inner else "COMMAND"
        usage = " ".join([name, *(_metavar(each) for each in arguments), f"[{rest}]"])
        yield from (f"## {name}", "", "```", usage, "```", "")
        yield from (markdown(inspect.cleandoc(command.help or "")), "")
        yield from _options(arguments, command)
        yield from _examples(command.epilog)
    for word, each in inner.items():
        yield from _command(f"{name} {word}", each)


def _options(arguments: list[Any], command: Any) -> Iterator[str]:
    panels: dict[str, list[Any]] = {"Arguments": arguments}
    for each in command.params:
        if each not in arguments:
            panels.setdefault(each.rich_help_panel or "Options", []).append(each)
    panels["Options"] = panels.pop("Options", [])  # --json and the like come last
    for panel, parameters in panels.items():
        if parameters:
            yield from (f"| {panel} | default | |", "|---|---|---|")
            yield from (_row(each) for each in parameters)
            yield ""


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        written = f"`{cell(_metavar(parameter))}`"
    else:
        names = ", ".join(f"`{each}`" for each in [*parameter.opts, *parameter.secondary_opts])
        taken = "" if parameter.is_flag else _metavar(parameter).strip()
        written = names + (f" `{cell(taken)}`" if taken else "")
    return f"| {written} | {_default(parameter)} | {cell(markdown(parameter.help or ''))} |"


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    kind = parameter.type_descriptor.annotation
    return str(getattr(kind, "__name__", kind)).upper()


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or (parameter.is_flag and parameter.default is False):
        return ""
    return "on" if parameter.default is True else f"`{cell(str(parameter.default))}`"


def _examples(epilog: str | None) -> Iterator[str]:
    """The examples at the end of a help text, one a line: `COMMAND  # what it does`."""
    for line in (epilog or "").strip().splitlines():
        command, _, comment = line.partition("  # ")
        yield f"- `{command}`" + (f": {markdown(comment)}" if comment else "")
    yield ""


def fields(module: str, name: str, but: str | None) -> Iterator[str]:
    """The fields of a configuration, but those of some bases, as Markdown: name, kind, limits, default, description."""
    config = getattr(importlib.import_module(module), name)
    left_out = {f for base in config.__mro__ if base.__name__ in (but or "").split(", ") for f in base.model_fields}
    yield from ("| field | values | default | |", "|---|---|---|---|")
    for field, info in config.model_fields.items():
        if field in left_out:
            continue
        default = "required" if info.is_required() else "" if info.default is None else f"`{cell(str(info.default))}`"
        values = ", ".join([f"`{cell(_kind(info.annotation))}`", *_limits(info)])
        yield f"| `{field}` | {values} | {default} | {cell(markdown(info.description or ''))} |"


def result(module: str, name: str) -> Iterator[str]:
    """The fields of a result as Markdown: name, kind, description; those that are not in its JSON are marked."""
    model = getattr(importlib.import_module(module), name)
    computed = {field: (info.return_type, info) for field, info in model.model_computed_fields.items()}
    yield from (f"| `{name}` | | |", "|---|---|---|")
    for field, (kind, info) in ({n: (i.annotation, i) for n, i in model.model_fields.items()} | computed).items():
        description = markdown(info.description or "")
        alone = " Not in JSON." if getattr(info, "exclude", None) else ""
        yield f"| `{field}` | `{cell(_type(kind))}` | {cell(description)}{alone} |"


def _type(annotation: Any) -> str:
    """A type as it is written in code, without what pydantic adds to it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Literal, Union, types.UnionType):
        return " | ".join(map(_type, inner))
    if origin:
        return f"{origin.__name__}[{', '.join(map(_type, inner))}]"
    written = {Ellipsis: "...", type(None): "None"}.get(annotation, annotation)
    return getattr(written, "__name__", str(written))


def _kind(annotation: Any) -> str:
    inner = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) is None:
        return getattr(annotation, "__name__", str(annotation))
    if all(isinstance(each, str) for each in inner):
        return " | ".join(inner)
    if isinstance(annotation, type):  # such as tuple[Path, ...]
        return str(annotation).replace("pathlib.", "").replace("typing.", "")
    return " | ".join(_kind(each) for each in inner)


def _limits(info: Any) -> Iterator[str]:
    kinds = [each for each in get_args(info.annotation) if hasattr(each, "__metadata__")]  # Annotated[int, ...] | None
    for limit in [*info.metadata, *(each for kind in kinds for each in kind.__metadata__)]:
        for each in [limit, *getattr(limit, "metadata", ())]:
            for word, sign in LIMITS.items():
                if getattr(each, word, None) is not None:
                    yield f"{sign} {getattr(each, word)}"


def markdown(text: str) -> str:
    """Help text as Markdown: options become code, and nothing in it means anything."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        escaped = re.sub(r"([\\*_<\[\]#~$])", r"\\\1", parts[index])
        parts[index] = re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", escaped)
    return "`".join(parts)


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
