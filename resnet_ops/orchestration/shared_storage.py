"""Check, before a job starts, that all its nodes share the run's folder, and run a function on each of them.

A folder that only one node sees is otherwise noticed hours later, at the first checkpoint or the first resume. Here
every node writes a marker file into it and reads those of all others.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.errors import BAD_REQUEST, PausedError, UserError
from resnet_ops.orchestration.nodes import Node, collect_results, start_on_nodes

DRIVER = "driver"


@contextmanager
def probe_nodes(
    nodes: Sequence[Node], folder: Path, probe: Callable[..., Any], *arguments: Any
) -> Iterator[Callable[[], dict[Node, Any]]]:
    """Have every node write into `folder` and call `probe`, while this process does other things.

    Args:
        nodes: The nodes of the job.
        folder: Folder that the run is to be written to.
        probe: Function to call on each node.
        arguments: Its arguments.

    Yields:
        A function that waits until every node has read what all others wrote, and returns the result of each node's
        probe. It raises UserError if a node does not share the folder, does not respond, or its probe raises one.
    """
    files.check_reachable(folder)
    markers = folder / f".seen-by-{secrets.token_hex(4)}"
    try:
        files.make_folder(markers)
        write_marker(markers, DRIVER)
    except OSError as error:
        raise _not_writable(folder, error.strerror) from None
    except PausedError as error:
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    try:
        pending = start_on_nodes(nodes, write_marker_and_probe, folder, markers, probe, arguments)

        def finish() -> dict[Node, Any]:
            results = collect_results(pending)
            expected = {DRIVER, *(node.id for node in nodes)}
            for node, visible in collect_results(start_on_nodes(nodes, read_markers, markers)).items():
                if missing := expected - visible:
                    writers = sorted("this machine" if m == DRIVER else _node_name(nodes, m) for m in missing)
                    raise _not_shared(folder, f"{node.name} does not see files written there by {', '.join(writers)}")
            return results

        yield finish
    finally:
        with suppress(OSError, UserError):
            files.remove_tree(markers)


def write_marker_and_probe(folder: Path, markers: Path, probe: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Write this node's marker, if the driver's is visible, and call `probe`; runs on each node."""
    import ray

    try:
        if DRIVER not in read_markers(markers):
            raise _not_shared(folder, "files written by the driver are not visible")
        write_marker(markers, ray.get_runtime_context().get_node_id())
    except OSError as error:
        raise _not_shared(folder, f"it cannot be read ({error.strerror})") from None
    except PausedError as error:
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    return probe(*arguments)


def write_marker(markers: Path, writer: str) -> None:
    """Write a file named after its writer, down to the disk."""
    files.write_atomically(markers / writer, writer.encode())


def read_markers(markers: Path) -> set[str]:
    """Return the writers whose markers are visible on this node."""
    writers = set()
    for file in files.listed(markers):
        with suppress(FileNotFoundError):  # a temporary file that was renamed just now
            if files.read(file) == file.name.encode():
                writers.add(file.name)
    return writers


def _node_name(nodes: Sequence[Node], id_: str) -> str:
    return next(node.name for node in nodes if node.id == id_)


def _not_writable(folder: Path, reason: str | None) -> UserError:
    return UserError(f"The run cannot be written to {folder}: {reason}.", "Choose another folder with --runs-dir.")


def _not_shared(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder} is not the same folder on every node: {reason}.",
        "Mount one shared folder (NFS, a volume) at that path on all nodes, or use --runs-dir s3://... or gs://...",
    )
