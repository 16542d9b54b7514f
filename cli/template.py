"""`resnet-ops cluster template`: files for getting a Ray cluster elsewhere, and what to type then."""

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape

from resnet_ops.config import TrainConfig
from resnet_ops.orchestration import templates
from resnet_ops.orchestration.template_values import ClusterValues, Kind
from resnet_ops.orchestration.templates import TemplateResult

from .config_options import Debug, Json, Options, options_of
from .console import Output, short

EXAMPLES = """
resnet-ops cluster template slurm -o mine --nodes 4 --gpus-per-node 8 --partition gpu  # submit it with sbatch
resnet-ops cluster template kuberay -o mine --nodes 2:8 --gpus-per-node 1  # scales up and down
resnet-ops cluster template compose -o mine  # a cluster of containers on this machine
"""


# The options of `train` that the files hold, in the order in which they are written there.
TRAIN_OPTIONS = ("max_failures", "checkpoint_every", "model", "data", "epochs")


class TemplateTrainConfig(TrainConfig):
    """A training on a new cluster, which also saves within epochs: such a cluster is more likely to go."""

    checkpoint_every: Annotated[str | None, TrainConfig.model_fields["checkpoint_every"]] = "10m"


@options_of(ClusterValues, (TemplateTrainConfig, TRAIN_OPTIONS))
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

    Nothing is started. The files use the versions of Ray, Python and resnet-ops that are installed here.
    """
    result_output = Output(json)
    values = options.make(ClusterValues)
    train = options.make(TemplateTrainConfig)
    _show(result_output, templates.write(kind, values, {name: getattr(train, name) for name in TRAIN_OPTIONS}, output))


def _show(output: Output, written: TemplateResult) -> None:
    output.show(*(f"[bold]{escape(short(file))}[/]" for file in written.files))
    if written.fill_in:
        output.show("[yellow]To fill in:[/]", *(f"  {escape(line)}" for line in written.fill_in))
    output.show("Next steps:", *(f"  {escape(step)}" for step in written.next_steps))
    output.end(written)
