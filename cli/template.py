"""`resnet-ops cluster template`: files for getting a Ray cluster elsewhere, and what to type then."""

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape

from resnet_ops.config import TrainConfig
from resnet_ops.orchestration import templates
from resnet_ops.orchestration.templates import ClusterValues, Kind, TemplateResult

from .console import Output, short
from .options import Debug, Json, Options, options_of

EXAMPLES = """
resnet-ops cluster template slurm -o mine --nodes 4 --gpus-per-node 8 --partition gpu  # submit it with sbatch
resnet-ops cluster template kuberay -o mine --nodes 2:8 --gpus-per-node 1  # scales up and down
resnet-ops cluster template compose -o mine  # a cluster of containers on this machine
"""

TRAIN = ("max_failures", "checkpoint_every", "model", "data", "epochs")
CHECKPOINT_EVERY = "10m"


@options_of(ClusterValues, (TrainConfig, TRAIN))
def template(
    kind: Annotated[
        Kind, typer.Argument(metavar="KIND", help=f"How to create the cluster: {', '.join(get_args(Kind))}.")
    ],
    options: Options,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write into.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write configuration files that create a Ray cluster and train on it, ready to edit.

    Nothing is started. Checkpoints are saved every 10 minutes unless --checkpoint-every says otherwise. The files use
    the versions of Ray, Python and resnet-ops that are installed here.
    """
    shown = Output(json)
    values = options.make(ClusterValues)
    trained = TrainConfig.of(**{"checkpoint_every": CHECKPOINT_EVERY} | options.typed(TrainConfig))
    train = {name: getattr(trained, name) for name in TRAIN}
    _show(shown, templates.write(kind, values, train, output))


def _show(output: Output, written: TemplateResult) -> None:
    output.show(*(f"[bold]{escape(short(file))}[/]" for file in written.files))
    if written.fill_in:
        output.show("[yellow]To fill in:[/]", *(f"  {escape(line)}" for line in written.fill_in))
    output.show("Next steps:", *(f"  {escape(step)}" for step in written.next_steps))
    output.end(written)
