"""The entry point: runs a command, and turns exceptions into a message and an exit code.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 75 preempted by a signal, 130 interrupted by Ctrl-C.
"""

import contextlib
import errno
import gc
import io
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from typer.exceptions import TyperException

import resnet_ops
from resnet_ops import environment
from resnet_ops.config_base import explain_kind
from resnet_ops.errors import BAD_REQUEST, INTERRUPTED, WORK_FAILED, UserError
from resnet_ops.stop_request import BY_USER, StoppedError, StopRequest, receive_signals, stop_of

from .commands import Root
from .console import err, node_table, report_error, warn
from .help import examples

app = typer.Typer(
    cls=Root,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train ResNets and export verified ONNX models.",
    epilog="""
resnet-ops train --name first  # train a first network
resnet-ops export first --onnx  # export it to ONNX
""",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the result and errors only; may also follow the command.")
    ] = False,
    no_progress: Annotated[
        bool,
        typer.Option("--no-progress", help="Print lines instead of bars and the like; may also follow the command."),
    ] = False,
) -> None:
    """Show the version or the help if no command is given."""
    err.quiet, err.changes_in_place = quiet, not no_progress
    if version:
        typer.echo(f"resnet-ops {resnet_ops.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


ANYWHERE = {"--quiet", "-q", "--no-progress"}  # options of the root that may stand after the command too


def main() -> NoReturn:
    """Run one command and exit; the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal, and no UTF-8, has every name
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    gc.freeze()  # or Python collects garbage among a million objects once more at exit: 0.5 s
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    anywhere = [argument for argument in arguments if argument in ANYWHERE]
    arguments = [*anywhere, *(argument for argument in arguments if argument not in ANYWHERE)]
    request = StopRequest()
    request.report = lambda error: report_error(error, error.exit_code, as_json, debug=False)
    with receive_signals(request):
        return _run(arguments, request, as_json, debug)


def _run(arguments: list[str], request: StopRequest, as_json: bool, debug: bool) -> int:
    try:
        environment.prepare(warn)
        with request.raising():
            code = app(arguments, prog_name="resnet-ops", standalone_mode=False, obj=request)
        if code == INTERRUPTED:  # Typer's exit code for an interrupt that no command has handled
            raise StoppedError(request.ended_by or BY_USER)
        return code if isinstance(code, int) else 0
    except UserError as error:
        nodes = getattr(error, "nodes", ())  # of a cluster that a job does not fit on
        if nodes:
            err.print(node_table(nodes))
        report_error(error, error.exit_code, as_json, debug)
        return error.exit_code
    except TyperException as error:
        own = error.__cause__  # the library's message on a value is better than Typer's
        if isinstance(own, ValidationError) and (option := getattr(error, "param", None)):
            own = explain_kind(f"{max(option.opts, key=len)} {own.errors()[0]['input']}", own)
        message = error.format_message()
        usage = UserError(message if message.endswith((".", "?")) else f"{message}.", _usage(error))
        report_error(own if isinstance(own, UserError) else usage, BAD_REQUEST, as_json, debug)
        return BAD_REQUEST
    except KeyboardInterrupt as error:
        stop = stop_of(error)
        cause = f"Ended by {stop.reason}." if stop.preempted else "Nothing was lost."
        report_error(request.record(stop) if request.is_deferring else UserError(cause), stop.exit_code, as_json, debug)
        del error
        return stop.exit_code
    except BrokenPipeError:  # the reader of the output has exited, as in `resnet-ops runs | head`
        sys.stderr.close()
        return WORK_FAILED
    except OSError as error:  # that nothing else explains: the machine lacks something
        report_error(error if debug else _explain(error), WORK_FAILED, as_json, debug)
        return WORK_FAILED
    except MemoryError as error:
        memory = UserError("There is not enough memory.", "Use smaller images or batches, or a larger machine.")
        report_error(error if debug else memory, WORK_FAILED, as_json, debug)
        return WORK_FAILED
    except ImportError as error:
        missing = UserError(
            f"A library cannot be loaded: {error}.",
            "Install it again; where the address space is limited (ulimit -v), allow more.",
            WORK_FAILED,
        )
        report_error(error if debug else missing, WORK_FAILED, as_json, debug)
        return WORK_FAILED
    except Exception as error:
        message = f"Internal error: {type(error).__name__}: {error}".rstrip(".") + "."
        internal = UserError(message, "Show the traceback with --debug.", WORK_FAILED)
        report_error(error if debug else internal, WORK_FAILED, as_json, debug)
        return WORK_FAILED


def _usage(error: TyperException) -> str:
    """Return an example of a command that lacks an argument, or else where its help is."""
    context = getattr(error, "ctx", None)
    if context is None:
        return "See resnet-ops --help."
    if error.format_message().startswith("Missing argument") and context.command.epilog:
        of_command = (example for example, _ in examples(context.command.epilog))
        if example := next((each for each in of_command if each.startswith(context.command_path)), None):
            return f"For example: {example}"
    return f"See {context.command_path} --help."


ACCESS = "Give this user access to it, or choose another place: --runs-dir, --cache-dir, HOME, TMPDIR."
REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ACCESS),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space, or choose another place: --runs-dir, --cache-dir."),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Allow more open files: ulimit -n 4096."),
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.ENOMEM: "Use smaller images or batches, or a larger machine.",
    errno.EAGAIN: "Allow more processes: ulimit -u.",
}


def _explain(error: OSError) -> UserError:
    """Return in a line what the machine lacks."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    remedy = REMEDIES.get(error.errno or 0, "Show the traceback with --debug.")
    with contextlib.suppress(FileNotFoundError):
        Path.cwd()
        return UserError(f"{place}{reason.rstrip('.')}.", remedy, WORK_FAILED)
    return UserError("The current folder no longer exists.", "Change to another one: cd ~", WORK_FAILED)


if __name__ == "__main__":  # how a job on a cluster is started
    from .submit import begin_as_job

    begin_as_job()
    main()
