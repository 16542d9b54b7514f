"""`resnet-ops train`: from options to a run, and what one sees meanwhile."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_ops.config import WHERE_IT_RUNS, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.orchestration.arguments import train_arguments
from resnet_ops.orchestration.connect import LOCAL, address_of, import_ray
from resnet_ops.orchestration.jobserver import is_job_server
from resnet_ops.recipes.reading import configure
from resnet_ops.tracking.tracker import check

from .clock import importing, moment, process_started_at, spare_others
from .console import Output, short
from .options import Debug, Json, RunsDir, given, option, runs_dir_option
from .screen import Screen
from .submit import submit

EXAMPLES = """
[bold]resnet-ops train[/]  ResNet-20 on the embedded digits, in seconds

[bold]resnet-ops train --model plain56 --epochs 15 --name deep-and-plain[/]  watch depth hurt

[bold]resnet-ops train --data ~/images --model resnet56 --name mine[/]  your own images, a folder a class

[bold]resnet-ops train --data ~/images --recipe fast --epochs 10[/]  trained as a recipe says, but for its epochs

[bold]resnet-ops train --resume mine[/]  go on where it stopped
"""
default = TrainConfig.default
NETWORK, TRAINING, OPTIMIZER = "Network and images", "Training", "Loss and optimizer"
AUGMENTATION, SPEED, SWITCHES = "Augmentation", "Speed and memory", "Switches"
PLACE, RUN = "Where it runs", "Run"


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
    recipe: Annotated[str | None, option(TrainConfig, "recipe", TRAINING, "--recipe", "--config")] = default("recipe"),
    epochs: Annotated[int, _option("epochs", TRAINING)] = default("epochs"),
    batch_size: Annotated[int, _option("batch_size", TRAINING)] = default("batch_size"),
    lr: Annotated[float, _option("lr", TRAINING)] = default("lr"),
    schedule: Annotated[str, _option("schedule", TRAINING)] = default("schedule"),
    milestones: Annotated[str, _option("milestones", TRAINING)] = default("milestones"),
    lr_decay: Annotated[float, _option("lr_decay", TRAINING)] = default("lr_decay"),
    warmup_steps: Annotated[int, _option("warmup_steps", TRAINING)] = default("warmup_steps"),
    warmup: Annotated[str, _option("warmup", TRAINING)] = default("warmup"),
    seed: Annotated[int, _option("seed", TRAINING)] = default("seed"),
    momentum: Annotated[float, _option("momentum", OPTIMIZER)] = default("momentum"),
    weight_decay: Annotated[float, _option("weight_decay", OPTIMIZER)] = default("weight_decay"),
    norm_weight_decay: Annotated[float | None, _option("norm_weight_decay", OPTIMIZER)] = default("norm_weight_decay"),
    label_smoothing: Annotated[float, _option("label_smoothing", OPTIMIZER)] = default("label_smoothing"),
    clip_grad_norm: Annotated[float, _option("clip_grad_norm", OPTIMIZER)] = default("clip_grad_norm"),
    ema: Annotated[float, _option("ema", OPTIMIZER)] = default("ema"),
    crop_padding: Annotated[int | None, _option("crop_padding", AUGMENTATION)] = default("crop_padding"),
    cutout: Annotated[int, _option("cutout", AUGMENTATION)] = default("cutout"),
    mixup: Annotated[float, _option("mixup", AUGMENTATION)] = default("mixup"),
    cutmix: Annotated[float, _option("cutmix", AUGMENTATION)] = default("cutmix"),
    precision: Annotated[str, _option("precision", SPEED)] = default("precision"),
    compile: Annotated[str, _option("compile", SPEED)] = default("compile"),
    accumulate: Annotated[int, _option("accumulate", SPEED)] = default("accumulate"),
    nesterov: Annotated[bool, _option("nesterov", SWITCHES)] = default("nesterov"),
    auto_batch: Annotated[bool, _option("auto_batch", SWITCHES)] = default("auto_batch"),
    flip: Annotated[bool | None, _option("flip", AUGMENTATION)] = default("flip"),
    random_resized_crop: Annotated[bool, _option("random_resized_crop", SWITCHES)] = default("random_resized_crop"),
    fit_all: Annotated[bool, _option("fit_all", SWITCHES)] = default("fit_all"),
    zero_init_residual: Annotated[bool, _option("zero_init_residual", SWITCHES)] = default("zero_init_residual"),
    sync_batchnorm: Annotated[bool, _option("sync_batchnorm", SWITCHES)] = default("sync_batchnorm"),
    channels_last: Annotated[bool, _option("channels_last", SWITCHES)] = default("channels_last"),
    fused: Annotated[bool, _option("fused", SWITCHES)] = default("fused"),
    device: Annotated[str, _option("device", PLACE)] = default("device"),
    cluster: Annotated[str | None, _option("cluster", PLACE)] = default("cluster"),
    nodes: Annotated[str, _option("nodes", PLACE)] = str(default("nodes")),
    gpus_per_node: Annotated[int | None, _option("gpus_per_node", PLACE)] = default("gpus_per_node"),
    workers_per_node: Annotated[int | None, _option("workers_per_node", PLACE)] = default("workers_per_node"),
    cpus_per_worker: Annotated[int | None, _option("cpus_per_worker", PLACE)] = default("cpus_per_worker"),
    wait: Annotated[float | None, _option("wait", PLACE)] = default("wait"),
    max_failures: Annotated[int, _option("max_failures", PLACE)] = default("max_failures"),
    hang_timeout: Annotated[float, _option("hang_timeout", PLACE)] = default("hang_timeout"),
    name: Annotated[str | None, _option("name", RUN)] = default("name"),
    runs_dir: Annotated[Path, RunsDir] = default("runs_dir"),
    checkpoint_every: Annotated[str | None, _option("checkpoint_every", RUN)] = default("checkpoint_every"),
    num_to_keep: Annotated[int, _option("num_to_keep", RUN)] = default("num_to_keep"),
    track: Annotated[str, _option("track", RUN)] = default("track"),
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
        typed = given(context) & set(TrainConfig.model_fields)
        config = configure(**{name: context.params[name] for name in typed})
    else:
        _refuse_changes(context, resume)
        changes = {name: context.params[name] for name in given(context) & WHERE_IT_RUNS}
        config = TrainConfig.of(runs_dir=runs_dir, **changes)
    if is_job_server(config.cluster):
        submit(config, resume, functools.partial(train_arguments, overwrite=overwrite), output)
        return
    check(config.track)
    with Screen() as screen:
        with importing():
            from resnet_ops.training import job

            if address_of(config) == LOCAL:  # else it is imported later, while the cluster is asked
                began = moment()
                import_ray()
                spare_others(began)
                from resnet_ops.training import worker  # noqa: F401  # brings torch

        if resume is None:
            result = job.train(config, overwrite=overwrite, observer=screen, started_at=process_started_at())
        else:
            result = job.resume(runs_dir, resume, changes=changes, observer=screen, started_at=process_started_at())
    _show(output, result)


def _refuse_changes(context: typer.Context, resume: str) -> None:
    """A run goes on as it began: with the same data, schedule and seed, or its result means nothing."""
    for name in sorted(given(context, "COMMANDLINE") - WHERE_IT_RUNS - {"resume", "runs_dir", "json", "debug"}):
        option = "--" + name.replace("_", "-")
        raise UserError(
            f"--resume {resume} keeps the options the run was started with; {option} cannot be changed.",
            f"Remove {option}, or train a new run.",
        )


def _show(output: Output, result: Any) -> None:
    record, run, best = result.record, result.run, result.record.best
    speed = f", {result.images_per_second:,.0f} images/s" if result.images_per_second else ""
    output.show(
        f"[bold]{percent(best.val_accuracy)}[/] validation accuracy: {record.config.model} on {record.data.name}, "
        f"best epoch {best.epoch} of {result.epochs}{speed}, total {result.total_s:.0f} s",
        f"  best weights  {short(best.checkpoint)}",
        f"  metrics       {short(run.metrics_file)}",
        f"  next          resnet-ops export {run.name} --onnx" + runs_dir_option(run.path.parent),
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
