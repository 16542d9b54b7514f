"""The resnet-ops that is installed here, as one folder to send to a cluster.

A cluster has Ray and torch, and perhaps another version of resnet-ops or none; a run is to do there what it does here.
"""

import hashlib
import shutil
from importlib.util import find_spec
from pathlib import Path

import resnet_ops
from resnet_ops.errors import UserError

# Installed inside the package; in an editable installation they are folders of the repository.
PARTS = ("cli", "cluster")


def copy_package(directory: Path) -> Path:
    """Copy this resnet-ops to `directory`/resnet_ops, laid out as in a wheel, and return that folder.

    It is meant for Ray's `runtime_env={"py_modules": [folder]}`, which takes precedence over what is installed on the
    cluster. Ray names a package by its content, so an unchanged one is not sent again.

    Raises:
        UserError: A part of the installation is missing.
    """
    target = directory / "resnet_ops"
    for part, source in _source_folders().items():
        shutil.copytree(
            source, target / part, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"), dirs_exist_ok=True
        )
    return target


def code_fingerprint() -> str:
    """Return the SHA-256 of the library without the command line: it is the same where results are."""
    digest = hashlib.sha256()
    root = _source_folders()[""]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _source_folders() -> dict[str, Path]:
    """Return the folder of each part, by its subpackage; the library itself comes first, as ''."""
    folders = {"": Path(next(iter(resnet_ops.__path__)))}
    for part in PARTS:
        spec = find_spec(f"resnet_ops.{part}")
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"resnet_ops.{part} is not installed.", "Reinstall resnet-ops with pip.")
        folders[part] = Path(next(iter(spec.submodule_search_locations)))
    return folders
