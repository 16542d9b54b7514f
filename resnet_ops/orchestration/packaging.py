"""The code that a cluster runs: this installed resnet-ops, whole, as one folder to ship.

A cluster has Ray and torch, and perhaps another resnet-ops or none. What is shipped is what the
user has in hand, so that a run does there what it does here.
"""

import hashlib
import shutil
from importlib.util import find_spec
from pathlib import Path

import resnet_ops
from resnet_ops.errors import UserError

# Installed inside the package; in an editable installation they lie beside it.
PARTS = ("cli", "cluster")


def copy_package(into: Path) -> Path:
    """Copy this resnet-ops to `into`/resnet_ops, in the shape of a wheel, and return that folder.

    It is meant for Ray's `runtime_env={"py_modules": [folder]}`, which goes before what is
    installed on the cluster. Ray names a package by its content: one that did not change is not
    sent again.

    Raises:
        UserError: A part of the installation is missing.
    """
    target = into / "resnet_ops"
    for part, source in _folders().items():
        shutil.copytree(
            source, target / part, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"), dirs_exist_ok=True
        )
    return target


def code_fingerprint() -> str:
    """SHA-256 of the library, the command line left out: what it computes is the same where this is."""
    digest = hashlib.sha256()
    root = _folders()[""]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _folders() -> dict[str, Path]:
    """Where each part comes from, by its place in the package; the library itself first."""
    folders = {"": Path(next(iter(resnet_ops.__path__)))}
    for part in PARTS:
        spec = find_spec(f"resnet_ops.{part}")
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"resnet_ops.{part} is not installed.", "Reinstall resnet-ops with pip.")
        folders[part] = Path(next(iter(spec.submodule_search_locations)))
    return folders
