"""`resnet-ops train`: from options to a run, and what one sees meanwhile."""

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_ops.config import WHERE_IT_RUNS, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration.connect import LOCAL, address_of
from resnet_ops.orchestration.jobserver import is_job_server

from .clock import importing, process_started_at
from .console import Output, percent, short
from .options import Debug, Json, RunsDir, option
from .screen import Screen
from .submit import submit

EXAMPLES = """
[bold]resnet-ops train[/]  ResNet-20 on the embedded digits, in seconds

[bold]resnet-ops train --model plain56 --epochs 15 --name deep-and-plain[/]  watch depth hurt

[bold]resnet-ops train --data ~/images --model resnet56 --name mine[/]  your own images, a folder a class

[bold]resnet-ops train --resume mine[/]  go on where it stopped
"""
default = TrainConfig.default
NETWORK, TRAINING, PLACE, RUN = "Network and images", "Training", "Where it runs", "Run"


def _option(name: str, panel: str) -> Any:
    return option(TrainConfig, name, panel)


def train(
    context: typer.Context,
    model: Annotated[str, _option("model", NETWORK)] = default("model"),
    shortcut: Annotated[str | None, _option("shortcut", NETWORK)] = default("shortcut"),
    data: Annotated[str, _option("data", NETWORK)] = default("data"),
    val_data: Annotated[str | None, _option("val_data", NETWORK)] = default("val_data"),
    data_root: Annotated[Path | None, _option("data_root", NETWORK)] = default("data_root"),
    image_column: Annotated[str | None, _option("image_column", NETWORK)] = default("image_column"),
    label_column: Annotated[str | None, _option("label_column", NETWORK)] = default("label_column"),
    image_size: Annotated[int | None, _option("image_size", NETWORK)] = default("image_size"),
    on_bad_image: Annotated[str, _option("on_bad_image", NETWORK)] = default("on_bad_image"),
    stream: Annotated[str, _option("stream", NETWORK)] = default("stream"),
    cache_dir: Annotated[Path | None, _option("cache_dir", NETWORK)] = default("cache_dir"),
    epochs: Annotated[int, _option("epochs", TRAINING)] = default("epochs"),
    batch_size: Annotated[int, _option("batch_size", TRAINING)] = default("batch_size"),
    lr: Annotated[float, _option("lr", TRAINING)] = default("lr"),
    schedule: Annotated[str, _option("schedule", TRAINING)] = default("schedule"),
    momentum: Annotated[float, _option("momentum", TRAINING)] = default("momentum"),
    weight_decay: Annotated[float, _option("weight_decay", TRAINING)] = default("weight_decay"),
    crop_padding: Annotated[int | None, _option("crop_padding", TRAINING)] = default("crop_padding"),
    flip: Annotated[bool | None, _option("flip", TRAINING)] = default("flip"),
    seed: Annotated[int, _option("seed", TRAINING)] = default("seed"),
    device: Annotated[str, _option("device", PLACE)] = default("device"),
    cluster: Annotated[str | None, _option("cluster", PLACE)] = default("cluster"),
    nodes: Annotated[str, _option("nodes", PLACE)] = default("nodes"),
    gpus_per_node: Annotated[int | None, _option("gpus_per_node", PLACE)] = default("gpus_per_node"),
    workers_per_node: Annotated[int | None, _option("workers_per_node", PLACE)] = default("workers_per_node"),
    cpus_per_worker: Annotated[int | None, _option("cpus_per_worker", PLACE)] = default("cpus_per_worker"),
    wait: Annotated[float | None, _option("wait", PLACE)] = default("wait"),
    max_failures: Annotated[int, _option("max_failures", PLACE)] = default("max_failures"),
    hang_timeout: Annotated[float, _option("hang_timeout", PLACE)] = default("hang_timeout"),
    precision: Annotated[str, _option("precision", PLACE)] = default("precision"),
    name: Annotated[str | None, _option("name", RUN)] = default("name"),
    runs_dir: Annotated[Path, RunsDir] = default("runs_dir"),
    checkpoint_every: Annotated[str | None, _option("checkpoint_every", RUN)] = default("checkpoint_every"),
    num_to_keep: Annotated[int, _option("num_to_keep", RUN)] = default("num_to_keep"),
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a run where it stopped.", rich_help_panel=RUN)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of the same name.", rich_help_panel=RUN)
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a plain or residual network on Ray and keep its best checkpoint.

    The run directory runs/NAME/ holds the configuration (run.json), the metrics of every epoch
    (metrics.jsonl), checkpoints to resume from, and the weights that validated best.
    """
    output = Output(json)
    if resume is None:
        config = TrainConfig.of(
            model=model,
            shortcut=shortcut,
            data=data,
            val_data=val_data,
            data_root=data_root,
            image_column=image_column,
            label_column=label_column,
            image_size=image_size,
            on_bad_image=on_bad_image,
            stream=stream,
            cache_dir=cache_dir,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule=schedule,
            momentum=momentum,
            weight_decay=weight_decay,
            crop_padding=crop_padding,
            flip=flip,
            seed=seed,
            device=device,
            cluster=cluster,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            workers_per_node=workers_per_node,
            cpus_per_worker=cpus_per_worker,
            wait=wait,
            max_failures=max_failures,
            hang_timeout=hang_timeout,
            precision=precision,
            name=name,
            runs_dir=runs_dir,
            checkpoint_every=checkpoint_every,
            num_to_keep=num_to_keep,
        )
    else:
        _refuse_changes(context, resume)
        changes = {name: context.params[name] for name in _typed(context) & WHERE_IT_RUNS}
        config = TrainConfig.of(runs_dir=runs_dir, **changes)
    if is_job_server(config.cluster):
        submit(config, resume, overwrite, output)
        return
    with Screen() as screen:
        with importing():
            from resnet_ops.training import job

            if address_of(config) == LOCAL:  # else it is imported later, while the cluster is asked
                from resnet_ops.training import worker  # noqa: F401  # brings torch and Ray

        if resume is None:
            result = job.train(config, overwrite=overwrite, observer=screen, started_at=process_started_at())
        else:
            result = job.resume(runs_dir, resume, changes=changes, observer=screen, started_at=process_started_at())
    _show(output, result)


def _typed(context: typer.Context) -> set[str]:
    """The options that the user gave."""
    names = [parameter.name or "" for parameter in context.command.params]
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _refuse_changes(context: typer.Context, resume: str) -> None:
    """A run goes on as it began: with the same data, schedule and seed, or its result means nothing."""
    for name in sorted(_typed(context) - WHERE_IT_RUNS - {"resume", "runs_dir", "json", "debug"}):
        option = "--" + name.replace("_", "-")
        raise UserError(
            f"--resume {resume} goes on with the options the run began with; {option} cannot be changed.",
            f"Leave {option} out, or train a new run.",
        )


def _show(output: Output, result: Any) -> None:
    record, run, best = result.record, result.run, result.record.best
    speed = f", {result.images_per_second:,.0f} images/s" if result.images_per_second else ""
    output.show(
        f"[bold]{percent(best.val_accuracy, 2)}[/] validation accuracy: {record.config.model} on {record.data.name}, "
        f"best epoch {best.epoch} of {result.epochs}{speed}, {result.total_s:.0f} s in all",
        f"  best weights  {short(best.checkpoint)}",
        f"  metrics       {short(run.metrics_file)}",
        f"  next          resnet-ops export {run.name} --onnx" + _runs_dir_option(run.path.parent),
    )
    output.end(
        {
            "name": run.name,
            "run_dir": run.path,
            "status": record.status,
            "model": record.config.model,
            "data": record.data.name,
            "epochs": result.epochs,
            "world_size": record.world_size,
            "device": record.device,
            "parameters": record.parameters,
            "best": {"epoch": best.epoch, "val_accuracy": best.val_accuracy, "checkpoint": best.checkpoint},
            "images_per_second": result.images_per_second,
            "time_to_first_step_s": result.time_to_first_step_s,
            "time_after_last_step_s": result.time_after_last_step_s,
            "total_s": result.total_s,
        }
    )


def _runs_dir_option(runs_dir: Path) -> str:
    return "" if runs_dir == Path("runs").absolute() else f" --runs-dir {short(runs_dir)}"
