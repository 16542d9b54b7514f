"""`resnet-ops train`: trains a network here or as a job on a cluster, and shows the result."""

import functools
from typing import TYPE_CHECKING

from rich.markup import escape

from resnet_ops.class_metrics import ClassRecall, metric_text
from resnet_ops.config import EXTENDING, TrainConfig
from resnet_ops.formatting import percent
from resnet_ops.orchestration.connect import LOCAL, cluster_address, import_ray
from resnet_ops.orchestration.job_client import is_job_server
from resnet_ops.recipes.reading import configure
from resnet_ops.tracking.tracker import check_service

from .config_options import Debug, Json, Options, Overwrite, Resume, options_of, refuse_changes, runs_dir_option
from .console import Output, short, test_accuracy_line, unmeasured_images_line
from .job_arguments import train_arguments
from .progress import TrainingProgress
from .startup import check_run, cpu_times, importing, process_started_at, yield_cores
from .submit import submit

if TYPE_CHECKING:
    from resnet_ops.run_records import Best
    from resnet_ops.training.job import TrainResult

EXAMPLES = """
resnet-ops train  # ResNet-20 on the built-in digits, in seconds
resnet-ops train --model plain56 --epochs 15 --name plain56  # see depth hurt a plain network
resnet-ops train --data ~/images --name mine  # your own images, one folder per class
resnet-ops train --data ~/photos --weights imagenet  # fine-tune pretrained weights
resnet-ops train --data ~/images --recipe fast --epochs 10  # a recipe, with fewer epochs
resnet-ops train --resume mine  # resume an interrupted run
resnet-ops train --resume mine --epochs 60  # more epochs
"""


@options_of(TrainConfig)
def train(
    options: Options, resume: Resume = None, overwrite: Overwrite = False, json: Json = False, debug: Debug = False
) -> None:
    """Train a plain or residual network with Ray and keep the best checkpoint.

    The run directory runs/NAME/ holds the configuration (run.json), the metrics of every epoch
    (metrics.jsonl), checkpoints to resume from, and the weights that validated best, by --select.
    """
    output = Output(json)
    typed = options.typed(TrainConfig)
    if resume is None:
        config = configure(**typed)
    else:
        changeable = TrainConfig.changeable_on_resume() | EXTENDING
        refuse_changes(options, resume, changeable, "run")
        changes = {name: value for name, value in typed.items() if name in changeable}
        config = options.make(TrainConfig)
    if is_job_server(config.cluster):
        submit(config, resume, functools.partial(train_arguments, overwrite=overwrite), output)
        return
    check_service(config.track)
    check_run(config, resume, overwrite)
    with TrainingProgress(options.given) as progress:
        with importing():
            from resnet_ops.training import job

            if cluster_address(config, config.nodes.most) == LOCAL:  # else imported while a cluster is contacted
                began = cpu_times()
                import_ray()
                yield_cores(began)
                from resnet_ops.training import worker  # noqa: F401  # imports torch

        if resume is None:
            result = job.train(
                config, overwrite=overwrite, observer=progress, started_at=process_started_at(), stop=options.stop
            )
        else:
            result = job.resume(
                config.runs_dir,
                resume,
                changes=changes,
                observer=progress,
                started_at=process_started_at(),
                stop=options.stop,
            )
    _show(output, result)


def _show(output: Output, result: "TrainResult") -> None:
    run, best, data = result.run, result.best, result.record.data
    last = "" if best.last_val_accuracy is None else f" (last epoch {percent(best.last_val_accuracy)})"
    speed = f", {result.images_per_second:,.0f} images/s" if result.images_per_second else ""
    trained = f"{result.model} on {result.data}"
    accuracy = (
        f"[bold]Fitted on all images[/], so without a validation accuracy: {trained}, epoch {best.epoch}, the last"
    )
    if best.val_accuracy is not None:
        accuracy = (
            f"[bold]{percent(best.val_accuracy)}[/] validation accuracy: {trained}, best epoch {best.epoch} of "
            f"{result.epochs}, chosen{_chosen_by(best)} on these {data.val_images:,} images{last}"
        )
    total = f"total {result.total_s:.0f} s"
    if result.record.resumed:
        total = f"total {result.total_s:.0f} s since it was resumed, {result.epochs_s:.0f} s in all epochs"
    output.show(f"{accuracy}{speed}, {total}")
    output.warn_of(result.majority_baseline)
    if result.reason:
        output.show(f"  {result.reason[0].upper()}{result.reason[1:]}")
    if metrics := _more_metrics(best):
        output.show(f"  validation    {metrics}")
    for title, row in zip(["worst classes", *[""] * len(result.worst_classes)], result.worst_classes, strict=False):
        output.show(f"  {title:<13} {_recall_line(row)}")
    if best.test_accuracy is not None:
        output.show(test_accuracy_line(best.test_accuracy, result.record))
    elif data.test_images:
        output.show(unmeasured_images_line(run, runs_dir_option(run.path.parent)))
    output.show(
        f"  {'last' if best.selected_on is None else 'best'} weights  {short(best.checkpoint)}",
        f"  metrics       {short(run.metrics_file)}",
        f"  next          {_next_commands(result)}",
    )
    output.end(result)


def _next_commands(result: "TrainResult") -> str:
    where, baseline = runs_dir_option(result.run.path.parent), result.majority_baseline
    evaluate = f"resnet-ops evaluate {result.name}{where}"
    if baseline is not None and not baseline.beaten:
        return evaluate
    export = f"resnet-ops export {result.name} --onnx{where}"
    return export if result.fit_all or result.test_images else f"{evaluate}, {export}"  # a line on test images has it


def _chosen_by(best: "Best") -> str:
    """Return what the best epoch was chosen by, unless that is the accuracy beside it."""
    metric = {"macro-f1": best.val_macro_f1, "macro-recall": best.val_macro_recall, "loss": best.val_loss}
    if best.selected_by is None or (value := metric.get(best.selected_by)) is None:
        return ""
    return f" by {metric_text(best.selected_by, value)}"


def _more_metrics(best: "Best") -> str:
    metrics = {
        "top-5": best.val_top5_accuracy,
        "macro recall": best.val_macro_recall,
        "macro F1": best.val_macro_f1,
    }
    return ", ".join(f"{name} {percent(value)}" for name, value in metrics.items() if value is not None)


def _recall_line(row: ClassRecall) -> str:
    low, high = row.interval
    return f"{escape(row.name)}: recall {percent(row.recall)} of {row.support:,} ({percent(low)} to {percent(high)})"
