"""Asks every machine of a job before it begins: do you see what the others write, do you see the images?

A folder that only one machine sees shows itself hours later, at the first checkpoint or at the
first resume. Here every machine writes a word into it, and reads everybody else's.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.errors import BAD_REQUEST, PausedError, UserError
from resnet_ops.orchestration.placement import Node

PATIENCE_S = 120.0
DRIVER = "driver"


@contextmanager
def probe_nodes(
    nodes: Sequence[Node], folder: Path, look: Callable[..., Any], *arguments: Any
) -> Iterator[Callable[[], dict[Node, Any]]]:
    """Have every machine write into `folder` and look at something, while this process does other things.

    Args:
        nodes: The machines.
        folder: Where the run is to be written.
        look: What to call on each machine.
        arguments: What to call it with.

    Yields:
        A function that waits until every machine has read what all others wrote, and returns what
        each one's look gave. It raises UserError where a machine does not see the folder as the
        others do, does not answer, or found something wrong; names it, and what to do.
    """
    files.check_reachable(folder)
    place = folder / f".seen-by-{secrets.token_hex(4)}"
    try:
        files.make_folder(place)
        write_marker(place, DRIVER)
    except OSError as error:
        raise _unwritable(folder, error.strerror) from None
    except PausedError as error:
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    try:
        first = _start(nodes, write_and_read, folder, place, look, arguments)

        def finish() -> dict[Node, Any]:
            answers = _collect(first)
            wanted = {DRIVER, *(node.id for node in nodes)}
            for node, words in _collect(_start(nodes, read_markers, place)).items():
                if missing := wanted - words:
                    writers = sorted("this machine" if m == DRIVER else _name(nodes, m) for m in missing)
                    raise _unseen(folder, f"{node.name} does not see files written there by {', '.join(writers)}")
            return answers

        yield finish
    finally:
        with suppress(OSError, UserError):
            files.remove_tree(place)


def _start(nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any) -> dict[Node, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    there = {node: NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes}
    return {node: remote.options(scheduling_strategy=where).remote(*arguments) for node, where in there.items()}


def _collect(pending: dict[Node, Any]) -> dict[Node, Any]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    ray.wait(list(pending.values()), num_returns=len(pending), timeout=PATIENCE_S)
    answers = {}
    for node, answer in pending.items():
        try:
            answers[node] = ray.get(answer, timeout=0.1)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause.copy_with(cause=f"On {node.name}: {error.cause.cause}") from error
            raise
        except RayError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"{node.name} did not answer when asked to check its disk ({reason}).") from error
    return answers


def write_and_read(folder: Path, place: Path, look: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """On a machine: write its id, if what the driver wrote is to be seen, and look."""
    import ray

    try:
        if DRIVER not in read_markers(place):
            raise _unseen(folder, "files written by the driver are not visible")
        write_marker(place, ray.get_runtime_context().get_node_id())
    except OSError as error:
        raise _unseen(folder, f"it cannot be read ({error.strerror})") from None
    except PausedError as error:
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    return look(*arguments)


def write_marker(place: Path, word: str) -> None:
    """Write a file called `word`, down to the disk."""
    files.write_atomically(place / word, word.encode())


def read_markers(place: Path) -> set[str]:
    """Whose words are to be read here."""
    words = set()
    for file in files.listed(place):
        with suppress(FileNotFoundError):  # a temporary one, which has just got its name
            if files.read(file) == file.name.encode():
                words.add(file.name)
    return words


def _name(nodes: Sequence[Node], id_: str) -> str:
    return next(node.name for node in nodes if node.id == id_)


def _unwritable(folder: Path, reason: str | None) -> UserError:
    return UserError(f"The run cannot be written to {folder}: {reason}.", "Choose another folder with --runs-dir.")


def _unseen(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} is not the same folder on every node: {what}.",
        "Mount one shared folder (NFS, a volume) at that path on all nodes, or use --runs-dir s3://... or gs://...",
    )
