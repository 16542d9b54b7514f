"""Options of commands, made from the fields of their configurations, and the few that are no fields, such as --json.

What an option is, its field declares with `resnet_ops.config_base.option`.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import PlainValidator
from pydantic.fields import FieldInfo

from resnet_ops.config_base import Config, Declaration, declarations
from resnet_ops.errors import UserError
from resnet_ops.stop_request import StopRequest

from .console import short

C = TypeVar("C", bound=Config)
Command = Callable[..., None]
Part = tuple[type[Config], Collection[str]]
LAST_PANELS = ("Verification", "Pretrained weights", "Cluster", "Run")  # before the advanced ones

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout, everything else on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Resume = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Resume where it stopped, from its last checkpoint.", rich_help_panel="Run"),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing run of the same name.", rich_help_panel="Run")
]


@dataclass(frozen=True)
class Options:
    """The options of a command's configurations as they were given, not yet validated."""

    context: typer.Context
    owners: dict[str, type[Config]]
    values: dict[str, Any]
    given: frozenset[str]  # on the command line or in the environment; of all the command's parameters

    @property
    def stop(self) -> StopRequest:
        """Return what signals ask the command to stop with."""
        request: StopRequest = self.context.obj
        return request

    def typed(self, config: type[Config]) -> dict[str, Any]:
        """Return the fields of `config` that were given."""
        return {name: value for name, value in self.values.items() if self.owners[name] is config}

    def make(self, config: type[C], **more: Any) -> C:
        """Return a `config` with the fields that were given; the others have their defaults.

        Raises:
            UserError: One of them is wrong.
        """
        return config.of(**self.typed(config) | more)


def shared_by_trials(config: type[Config]) -> Part:
    """Return the part of `config` whose options all trials of a search or study share."""
    return config, [name for name, declaration in declarations(config).items() if declaration.shared]


def options_of(*configs: type[Config] | Part, arguments: Collection[str] = ()) -> Callable[[Command], Command]:
    """Give a command the options that its configurations declare (`resnet_ops.config_base.option`).

    They take the place of the command's parameter `options`, which receives them; advanced ones come last. A field
    without a default is a positional argument.

    Args:
        configs: The configurations, whole or with the names of some fields; of equal names the first counts.
        arguments: Names of fields with a default that are positional arguments, too.
    """
    owners: dict[str, type[Config]] = {}
    parameters: list[tuple[Declaration, inspect.Parameter]] = []
    for each in configs:
        config = each[0] if isinstance(each, tuple) else each
        declared = declarations(config)
        for name in each[1] if isinstance(each, tuple) else declared:
            if name not in owners:
                owners[name] = config
                parameters.append((declared[name], _parameter(config, name, declared[name], name in arguments)))

    def rank(declared: tuple[Declaration, inspect.Parameter]) -> tuple[bool, int]:
        panel = declared[0].panel
        return declared[0].advanced, LAST_PANELS.index(panel) + 1 if panel in LAST_PANELS else 0

    parameters.sort(key=rank)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(context: typer.Context, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in values}
            given = frozenset(n for n, at in sources.items() if at and at.name in ("COMMANDLINE", "ENVIRONMENT"))
            typed = {name: values.pop(name) for name in owners}
            options = Options(context, owners, {n: v for n, v in typed.items() if n in given}, given)
            command(options=options, **values)

        signature: list[inspect.Parameter] = [_keyword("context", typer.Context)]
        for name, own in inspect.signature(command, eval_str=True).parameters.items():
            if name == "options":
                signature += [parameter for declaration, parameter in parameters if not declaration.advanced]
            else:
                signature.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        signature += [parameter for declaration, parameter in parameters if declaration.advanced]
        wrapper.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
        return wrapper

    return decorate


METAVARS: dict[Any, str] = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}


def _parameter(config: type[Config], name: str, declaration: Declaration, positional: bool) -> inspect.Parameter:
    info, choices, kind = config.model_fields[name], config.choices(name), _kind(config.model_fields[name])
    positional = positional or info.is_required()
    default = inspect.Parameter.empty if info.is_required() else None if positional else info.default
    if kind is str and default not in (None, inspect.Parameter.empty):
        default = str(default)
    settings: dict[str, Any] = {
        "help": info.description,
        "metavar": name.upper() if positional else "|".join(choices) or declaration.metavar or METAVARS.get(kind),
        "autocompletion": (lambda: choices) if choices else None,
        "envvar": declaration.envvar,
        "show_default": default is not None,
    }
    if positional:
        return _keyword(name, Annotated[kind, typer.Argument(**settings)], default)
    names = [f"--{name.replace('_', '-')}", *declaration.aliases] if declaration.aliases else []
    option = typer.Option(*names, rich_help_panel=declaration.panel, **settings)
    return _keyword(name, Annotated[kind | None if default is None else kind, option], default)


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _kind(info: FieldInfo) -> Any:
    """Return the type that Typer parses; of unknown types the text, which the field then validates."""
    if get_origin(info.annotation) is tuple:
        return list[get_args(info.annotation)[0]]  # type: ignore[misc]
    kind = next((each for each in get_args(info.annotation) if each is not type(None)), info.annotation)
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    is_place = any(isinstance(each, PlainValidator) for each in info.metadata)  # Path would take a slash out of s3://
    return kind if kind in (bool, int, float, Path) and not is_place else str


def refuse_changes(
    options: Options, resume: str, changeable: Collection[str], kind: str, pairs: Iterable[str] = ()
) -> None:
    """Check that only `changeable` options are given to a run (or search, or study) that is resumed.

    Raises:
        UserError: Another option, or one of `pairs` (OPTION=VALUES), was given.
    """
    fixed = options.given - {*changeable, "study", "pairs", "resume", "runs_dir", "json", "debug"}
    for changed in (*pairs, *(f"--{name.replace('_', '-')}" for name in sorted(fixed))):
        raise UserError(
            f"--resume {resume} continues with the options that the {kind} began with; {changed} cannot be changed.",
            f"Leave {changed} out, or start a new {kind}.",
        )


def runs_dir_option(runs_dir: Path) -> str:
    """Return the option ` --runs-dir ...` for commands to suggest; empty for the default folder."""
    return "" if runs_dir == Path("runs").absolute() else f" --runs-dir {short(runs_dir)}"
