"""What the shell completes where it is not a fixed list: runs, recipes, networks, weights, datasets.

Install it with `resnet-ops --install-completion`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from resnet_ops.config import AUTO, DATA_SETS, IMAGENET_WEIGHTS
from resnet_ops.errors import UserError

Complete = Callable[[typer.Context, str], list[str]]
NETWORKS = (
    AUTO,
    *(f"resnet{depth}" for depth in (8, 14, 18, 20, 32, 34, 44, 50, 56, 101, 110, 152)),
    *(f"plain{depth}" for depth in (8, 14, 18, 20, 32, 34, 44, 50, 56, 101, 110, 152)),
    "alexnet",
    "googlenet",
    "vgg19",
)


def _runs(ctx: typer.Context, incomplete: str) -> list[str]:
    from resnet_ops import runs

    folder = ctx.params.get("runs_dir") or Path("runs")
    with contextlib.suppress(UserError, OSError):
        return [run.name for run in runs.in_folder(Path(folder)) if run.name.startswith(incomplete)]
    return []


def _recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    from resnet_ops.recipes.reading import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)] + list(_files(incomplete, ".toml"))


def _networks(ctx: typer.Context, incomplete: str) -> list[str]:
    return [name for name in NETWORKS if name.startswith(incomplete)]


def _weights(ctx: typer.Context, incomplete: str) -> list[str]:
    return [
        *(name for name in (IMAGENET_WEIGHTS,) if name.startswith(incomplete)),
        *_runs(ctx, incomplete),
        *_files(incomplete, ".pth", ".pt", ".ckpt", ".safetensors"),
    ]


def _datasets(ctx: typer.Context, incomplete: str) -> list[str]:
    return [*(name for name in DATA_SETS if name.startswith(incomplete)), *_files(incomplete, ".parquet")]


def _runs_and_files(ctx: typer.Context, incomplete: str) -> list[str]:
    return [*_runs(ctx, incomplete), *_files(incomplete, ".onnx", ".safetensors", ".pth", ".pt")]


def _files(incomplete: str, *suffixes: str) -> Iterator[str]:
    """Yield the folders, and the files with one of these suffixes, that begin so."""
    folder, _, start = incomplete.rpartition("/")
    before = f"{folder}/" if "/" in incomplete else ""
    with contextlib.suppress(OSError):
        for path in sorted(Path(before or ".").iterdir()):
            if path.name.startswith(start) and (start.startswith(".") or not path.name.startswith(".")):
                if path.is_dir():
                    yield f"{before}{path.name}/"
                elif path.suffix in suffixes:
                    yield f"{before}{path.name}"


BY_NAME: dict[str, Complete] = {  # of an option or an argument
    "model": _networks,
    "recipe": _recipes,
    "weights": _weights,
    "data": _datasets,
    "resume": _runs,
    "run": _runs_and_files,
    "runs": _runs,
    "file": _runs_and_files,
    "checkpoint": _runs_and_files,
}
