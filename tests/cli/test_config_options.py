"""Options come from fields: what a field says is what a command takes, shows and passes on."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from resnet_ops.cli import main
from resnet_ops.cli.config_options import Json, Options, options_of, refuse_changes, shared_by_trials
from resnet_ops.cli.console import short
from typer.testing import CliRunner

from resnet_ops.cluster_config import NodeRange
from resnet_ops.config_base import Config, Positive, option
from resnet_ops.errors import BAD_REQUEST, UserError
from resnet_ops.files import Place


class Base(Config):
    kind: Annotated[Literal["one", "two"], option("Which kind.", panel="First")] = "one"
    tool: Annotated[str | None, option("A tool.", advanced="tools", aliases=("--instrument",))] = None
    off: Annotated[bool, option("Off by default.", panel="First")] = False
    on: Annotated[bool, option("On by default.", panel="First")] = True
    either: Annotated[bool | None, option("On, off, or as it fits.", panel="First")] = None
    nodes: Annotated[NodeRange, option("Machines.", panel="First")] = NodeRange(1, 1)
    share: Annotated[float, option("A share.", panel="First", shared=True, gt=0)] = 0.5
    count: Annotated[Positive | None, option("A number.", panel="First", shared=True)] = None
    file: Annotated[Path | None, option("A file.", panel="First")] = None
    place: Annotated[Place, option("A place.", panel="First", envvar="TEST_PLACE")] = Path("here")
    hidden: int = 3  # no option


class Work(Base):
    what: Annotated[str, option("What to work on.")]
    files: Annotated[tuple[Path, ...], option("Files.", min_length=1)]


class Other(Config):
    share: Annotated[str, option("Shares to try.", panel="Second")] = "0.1,0.2"


def run(command: Any, *arguments: str, **environment: str) -> str:
    app = typer.Typer()
    app.command()(command)
    ended = CliRunner().invoke(app, arguments, env=environment)
    if isinstance(ended.exception, UserError):
        raise ended.exception
    return ended.output


def parsed(*arguments: str, **environment: str) -> Options:
    got: list[Options] = []

    @options_of(Work)
    def command(options: Options, json: Json = False) -> None:
        got.append(options)

    output = run(command, *arguments, **environment)
    assert got, output
    return got[0]


def test_only_what_was_given_is_passed_on_and_the_rest_is_the_fields_own() -> None:
    options = parsed("x", "a.png", "b.png", "--json", "--nodes", "2:4", "--share", "0.25", "--no-on", "--kind", "two")
    assert options.given == {"what", "files", "json", "nodes", "share", "on", "kind"}
    config = options.make(Work)
    assert (config.what, config.files) == ("x", (Path("a.png"), Path("b.png")))
    assert (config.nodes, config.share, config.on, config.kind) == (NodeRange(2, 4), 0.25, False, "two")
    assert config == Work(what="x", files=("a.png", "b.png"), nodes="2:4", share=0.25, on=False, kind="two")  # type: ignore[arg-type]
    assert config.model_fields_set == {"what", "files", "nodes", "share", "on", "kind"}


def test_a_default_that_is_typed_was_given() -> None:
    assert parsed("x", "a", "--kind", "one", "--no-off").typed(Work).items() >= {"kind": "one", "off": False}.items()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [([], None), (["--either"], True), (["--no-either"], False)],
)
def test_a_switch_may_be_left_open(typed: list[str], expected: bool | None) -> None:
    assert parsed("x", "a", *typed).make(Work).either is expected


def test_aliases_and_the_environment() -> None:
    assert parsed("x", "a", "--instrument", "saw").make(Work).tool == "saw"
    options = parsed("x", "a", TEST_PLACE="s3://bucket/folder")
    assert options.typed(Work)["place"] == "s3://bucket/folder"  # both slashes
    assert "place" in options.given
    assert parsed("x", "a", "--place", "there", TEST_PLACE="s3://b").make(Work).place == Path("there")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--kind", "on"], "--kind cannot be 'on'. Did you mean one?"),
        (["--nodes", "4:2"], "--nodes must have the smaller number first"),
        (["--count", "0"], "--count should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_by_the_field(typed: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        parsed("x", "a", *typed).make(Work)
    assert message in str(refused.value)


def test_several_configurations_have_each_option_once() -> None:
    got: list[Options] = []

    @options_of(Other, shared_by_trials(Base))
    def command(options: Options) -> None:
        got.append(options)

    run(command, "--share", "0.3", "--count", "2")
    assert (got[0].typed(Other), got[0].typed(Base)) == ({"share": "0.3"}, {"count": 2})
    assert "No such option" in run(command, "--kind", "one")  # not shared


def test_a_field_may_be_an_argument_elsewhere() -> None:
    got: list[Options] = []

    @options_of(Base, arguments=["kind"])
    def command(options: Options) -> None:
        got.append(options)

    run(command)
    run(command, "two")
    assert [options.typed(Base) for options in got] == [{}, {"kind": "two"}]
    assert got[0].make(Base).kind == "one"


def test_choices_complete() -> None:
    @options_of(Base)
    def command(options: Options) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    parsed_command: Any = typer.main.get_command(app)
    (kind,) = (parameter for parameter in parsed_command.params if parameter.name == "kind")
    assert [item.value for item in kind.shell_complete(parsed_command.make_context("command", []), "t")] == ["two"]


def test_advanced_options_are_shown_last_and_fields_without_option_never() -> None:
    @options_of(Base)
    def command(options: Options, json: Json = False) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    parsed_command: Any = typer.main.get_command(app)
    names = [parameter.name for parameter in parsed_command.params]
    assert names.index("json") < names.index("tool")
    assert parsed_command.params[names.index("tool")].rich_help_panel == "Advanced: tools"
    assert "hidden" not in names


def test_what_is_resumed_keeps_its_options() -> None:
    options = parsed("x", "a", "--share", "0.25")
    with pytest.raises(UserError, match=r"--resume r .* the search began with; a=1 cannot be changed"):
        refuse_changes(options, "r", {"share"}, "search", ["a=1"])
    with pytest.raises(UserError, match="--files cannot be changed"):
        refuse_changes(options, "r", {"share"}, "run")


def test_the_dataset_to_check_must_be_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although training has a default for it."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command sets it, and for no longer
    assert main.run(["data", "check"]) == BAD_REQUEST
    assert "Missing argument 'DATA'. For example: resnet-ops data check ~/images\n" in capsys.readouterr().err
    for words, help_of in (["help"], ""), (["data", "chekc"], "data "), (["runs", "show"], "runs show "):
        assert main.run(words) == BAD_REQUEST
        told = capsys.readouterr().err
        assert f"See resnet-ops {help_of}--help." in told or "For example: resnet-ops runs show mine" in told


def test_names_of_files_cannot_command_a_terminal() -> None:
    assert short(Path.cwd() / "x\x1b[2J\nPassed.onnx") == r"x\x1b[2J\nPassed.onnx"
