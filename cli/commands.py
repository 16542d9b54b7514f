"""The commands, each in the module of its name, which is imported when the command is used.

Their names and summaries are listed here, so that `resnet-ops --help` imports none of them.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer.main

from .help import Command, Group

COMMANDS = {  # by heading: name and summary of each command
    "Train": {
        "init": "Write a recipe for your images: what `train` would choose and why, and every other option as a "
        "comment.",
        "train": "Train a plain or residual network with Ray and keep the best checkpoint.",
        "tune": "Search depth, learning rate and other hyperparameters, and keep the best network.",
        "study": "Reproduce an experiment of the ResNet paper: many training runs, figures, a table and a verdict.",
    },
    "Evaluate": {
        "evaluate": "Evaluate a run, a file of weights or an exported file on labeled images: metrics per class, "
        "calibration.",
    },
    "Export and deploy": {
        "export": "Export the best checkpoint of a run to ONNX and verify it with ONNX Runtime.",
        "validate": "Verify an exported file on this machine: are its outputs still those of its checkpoint?",
        "predict": "Classify images with an exported ONNX file.",
        "diagnose": "Find out why your own program gives other answers than an exported file: its preprocessing, "
        "nearly always.",
        "bench": "Benchmark an exported ONNX file in ONNX Runtime against PyTorch, eager and compiled: throughput and "
        "latency.",
        "serve": "Serve an exported ONNX file over HTTP with Ray Serve: POST an image to /classify to get its class "
        "probabilities.",
    },
    "Inspect": {
        "report": "Write a self-contained HTML report about one or more runs: learning curves, confusion matrix, worst "
        "errors.",
        "recipes": "List the recipes for `train --recipe`, or show one.",
        "runs": "List runs with network, dataset, status, accuracies and age, newest first; show, compare or delete "
        "some.",
        "data": "Inspect datasets.",
        "doctor": "Check this machine: versions, devices, Ray, NCCL, ONNX Runtime providers.",
    },
    "Cluster": {
        "cluster": "Create and inspect Ray clusters.",
        "jobs": "List, follow and stop jobs on a Ray cluster.",
    },
}


class Root(Group):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names of the commands."""
        return list(self.commands)

    def summaries(self, context: typer.Context) -> Iterator[tuple[str, str, str]]:  # noqa: ARG002
        """Yield heading, name and summary of each command."""
        yield from ((heading, *command) for heading, commands in COMMANDS.items() for command in commands.items())


class _Commands(Mapping[str, Any]):
    """The commands by name, imported on first access."""

    def __init__(self) -> None:
        self.imported: dict[str, Any] = dict.fromkeys(name for commands in COMMANDS.values() for name in commands)

    def __getitem__(self, name: str) -> Any:
        if self.imported[name] is None:
            self.imported[name] = _import_command(name)
        return self.imported[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.imported)

    def __len__(self) -> int:
        return len(self.imported)


def _import_command(name: str) -> Any:
    """Import a command from its module: the group `app`, or the function of its name with `EXAMPLES`."""
    module = import_module(f".{name}", __package__)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name, cls=Command, epilog=getattr(module, "EXAMPLES", None))(getattr(module, name))
    command = typer.main.get_command(app)
    command.name = name
    return command
