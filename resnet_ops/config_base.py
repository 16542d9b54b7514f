"""Configurations and the declaration of their fields as options: validated once, errors naming options as typed.

The configurations themselves are elsewhere; cli/config_options.py makes options of their fields.
"""

import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import readable

Positive = Annotated[int, Field(ge=1)]
MAX_SIDE = 4096  # of a network's input, in pixels
WHOLE_NUMBER, NUMBER, TRUE_OR_FALSE = "a whole number", "a number", "true or false"
NEEDED = {  # by the types of pydantic's errors
    "int_parsing": WHOLE_NUMBER,
    "int_parsing_size": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "int_type": WHOLE_NUMBER,
    "float_parsing": NUMBER,
    "float_type": NUMBER,
    "bool_parsing": TRUE_OR_FALSE,
    "bool_type": TRUE_OR_FALSE,
}
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_image_size(size: object) -> str:
    return image_size_text(parse_image_size(str(size)))


ImageSize = Annotated[str, BeforeValidator(_check_image_size)]  # or an int, of squares, as Python code may have it


def _check_percent(accuracy: float) -> float:
    if 0 < accuracy <= 1:
        raise ValueError("must be in percent, such as 95")
    return accuracy


Percent = Annotated[float, AfterValidator(_check_percent)]  # an accuracy; one from 0 to 1 would be met by any network


class Config(BaseModel):
    """A frozen set of options, validated; `of` makes one from what a user typed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Validate `values`.

        Raises:
            UserError: Names the first option that is wrong, as typed on the command line.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise explain(cls, error) from None

    @classmethod
    def default(cls, name: str) -> Any:
        """Return the default of option `name`."""
        return cls.model_fields[name].default

    @classmethod
    def choices(cls, name: str) -> list[str]:
        """Return the values that option `name` may take; [] if they are not a fixed list."""
        return _choices(cls.model_fields[name].annotation)

    @classmethod
    def changeable_on_resume(cls) -> frozenset[str]:
        """Return the options that may differ when a run is resumed."""
        return frozenset(name for name, declaration in declarations(cls).items() if declaration.changeable)


@dataclass(frozen=True)
class Declaration:
    """The way the command line shows and reads a field."""

    panel: str | None = None
    advanced: bool = False
    aliases: tuple[str, ...] = ()
    metavar: str | None = None
    envvar: str | None = None
    shared: bool = False
    changeable: bool = False


def option(
    description: str,
    *,
    panel: str | None = None,
    advanced: str | None = None,
    aliases: tuple[str, ...] = (),
    metavar: str | None = None,
    envvar: str | None = None,
    shared: bool = False,
    changeable: bool = False,
    **limits: Any,
) -> Any:
    """Declare a field as an option of the command line, too.

    Args:
        description: Its help text.
        panel: Heading to show it under in `--help`.
        advanced: Instead of `panel` for an option that few need; these are shown last.
        aliases: Other names for it, such as `--config`.
        metavar: Placeholder of its value in `--help`; by default its choices or its type.
        envvar: Environment variable to read it from if it is not typed.
        shared: Whether it is an option of `tune` and `study` too, the same for all their trials.
        changeable: Whether it may differ when a run is resumed, as it does not affect what the run computes;
            of the images, their fingerprint decides that they are the same.
        limits: Constraints of `pydantic.Field`, such as `ge`.
    """
    title = f"Advanced: {advanced}" if advanced else panel
    declaration = Declaration(title, advanced is not None, aliases, metavar, envvar, shared, changeable)
    return Field(description=description, json_schema_extra={"option": asdict(declaration)}, **limits)


def declarations(config: type[Config]) -> dict[str, Declaration]:
    """Return the fields of `config` that are declared as options, in their order."""
    extras = {name: info.json_schema_extra for name, info in config.model_fields.items()}
    return {n: Declaration(**extra["option"]) for n, extra in extras.items() if isinstance(extra, dict)}  # type: ignore[arg-type]


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


def explain(
    cls: type[Config], error: ValidationError, file: Path | None = None, option: str | None = None
) -> UserError:
    """Name the first option that is wrong, as typed on the command line or written in `file`, or by `option`."""
    first = error.errors()[0]
    name, typed = str(first["loc"][0]) if first["loc"] else "", first.get("input")
    own = first.get("ctx", {}).get("error")
    if isinstance(own, UserError):
        return own.copy_with(cause=f"{option}: {own.cause}") if option else own
    option = option or (f"{file}: {name}" if file else "--" + name.replace("_", "-"))
    if first["type"] == "extra_forbidden":
        place = f"{file}: there" if file else "There"
        return UserError(f"{place} is no option {name!r}.", did_you_mean(name, cls.model_fields))
    if first["type"] == "literal_error":
        choices = cls.choices(name)
        remedy = f"{did_you_mean(str(typed), choices)} Valid: {', '.join(choices)}."
        return UserError(f"{option} cannot be {str(typed)!r}.", remedy)
    if mismatch := explain_kind(f"{option} {repr(typed) if file else typed}", error):
        return mismatch
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return UserError(f"{option} {message}; {str(typed)!r} was given.")


def explain_kind(typed: str, error: ValidationError) -> UserError | None:
    """Return what kind of value is needed where `typed` is of another; None where it is wrong in another way."""
    needed = NEEDED.get(error.errors()[0]["type"])
    return UserError(f"{typed}: {needed} is needed.") if needed else None


def parse_image_size(text: str) -> tuple[int, int]:
    """Return height and width, written as `224x320`, or as `224` where they are the same.

    Raises:
        ValueError: It is something else, or a side is not from 1 to `MAX_SIDE`.
    """
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text, re.ASCII)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
        raise ValueError(
            f"must be one side, such as 224, or height and width, such as 224x320, of 1 to {MAX_SIDE} pixels"
        )
    return sides


def image_size_text(size: tuple[int, int]) -> str:
    """Write height and width as `parse_image_size` reads them."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def check_run_name(name: str) -> str:
    """Return `name` if it can name a run: one folder, no surprises in a shell.

    Raises:
        ValueError: It cannot.
    """
    if not RUN_NAME.fullmatch(name):
        raise ValueError("must be letters, digits, '.', '_' and '-', at most 100, starting with a letter or digit")
    return name


def check_text(value: Any) -> Any:
    """Return a value that is not a text or path, or one that can be stored as UTF-8.

    Raises:
        UserError: It has bytes of another encoding, as the names in an archive of another system may have.
    """
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{readable(text)} is not UTF-8, so that it cannot be recorded.",
            "Rename it, for example with: convmv -f latin1 -t utf8 -r --notest FOLDER",
        ) from None
    return value


def as_options(values: dict[str, Any]) -> list[str]:
    """Write options as they are typed on the command line."""
    written = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            written.append(f"--{option}" if value else f"--no-{option}")
        else:
            written.append(f"--{option}={as_typed(value)}")
    return written


def as_typed(value: Any) -> str:
    """Write an option's value as a user would: a Path has taken one of the slashes out of s3://."""
    text = str(value)
    scheme, separator, rest = text.partition(":/")
    if isinstance(value, Path) and separator and scheme.isalnum() and not rest.startswith("/"):
        return f"{scheme}://{rest}"
    return text


def quoted(argument: object) -> str:
    """Return a file, a dataset or an address as one argument of a command that is suggested to the user."""
    return shlex.quote(as_typed(argument))
