"""Asks every machine of a job before it begins: do you see what the others write, do you see the images?

A folder that only one machine sees shows itself hours later, at the first checkpoint or at the
first resume. Here every machine writes a word into it, and reads everybody else's.
"""

import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resnet_ops.errors import UserError
from resnet_ops.orchestration.placement import Node

PATIENCE_S = 120.0


def ask(nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any) -> dict[Node, Any]:
    """Call a function once on each machine, at the same time.

    Raises:
        UserError: A machine did not answer; or what the function raised, with the machine's name.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    pending = {
        node: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*arguments)
        for node in nodes
    }
    ray.wait(list(pending.values()), num_returns=len(pending), timeout=PATIENCE_S)
    answers = {}
    for node, answer in pending.items():
        try:
            answers[node] = ray.get(answer, timeout=0.1)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"On {node.name}: {error.cause.cause}", error.cause.remedy) from error
            raise
        except RayError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{node.name} was asked to look at its disk, and did not answer ({reason})", "Is it well?"
            ) from error
    return answers


def prove_shared(folder: Path, nodes: Sequence[Node]) -> None:
    """Prove that every machine reads in `folder` what any other one writes there, this one included.

    Raises:
        UserError: One does not; names it, and what to mount or pass.
    """
    place = folder / f".seen-by-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place.mkdir()
        write_word(place, "driver")
    except OSError as error:
        raise _unseen(folder, socket.gethostname(), f"cannot be written there ({error.strerror})") from None
    try:
        ask(nodes, write_own_word, folder, place)
        wanted = {"driver", *(node.id for node in nodes)}
        for node, words in ask(nodes, read_words, place).items():
            if missing := wanted - words:
                names = ["this machine" if m == "driver" else next(n.name for n in nodes if n.id == m) for m in missing]
                raise _unseen(folder, node.name, f"it does not see there what {', '.join(sorted(names))} wrote")
    finally:
        for file in place.iterdir():
            file.unlink(missing_ok=True)
        place.rmdir()


def write_own_word(folder: Path, place: Path) -> None:
    """On a machine: write its id, if the place that the driver made is to be seen."""
    import ray

    if not place.is_dir():
        raise _unseen(folder, "", "it does not see there what this machine wrote")
    try:
        write_word(place, ray.get_runtime_context().get_node_id())
    except OSError as error:
        raise _unseen(folder, "", f"it cannot write there ({error.strerror})") from None


def write_word(place: Path, word: str) -> None:
    """Write a file called `word`, down to the disk."""
    (place / word).write_text(word)


def read_words(place: Path) -> set[str]:
    """On a machine: whose words it can read."""
    return {file.name for file in place.iterdir() if file.read_text() == file.name} if place.is_dir() else set()


def _unseen(folder: Path, machine: str, what: str) -> UserError:
    return UserError(
        f"{folder} is not the same folder on every machine: {machine + ': ' if machine else ''}{what}.",
        "Mount one shared folder (NFS, a volume) at that path on all of them, or pass --runs-dir s3://... or gs://...",
    )
