"""`resnet-ops tune`: searches hyperparameters here or as a job on a cluster, and shows the best trials."""

import functools
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_ops.class_metrics import metric_text
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.orchestration.job_client import is_job_server
from resnet_ops.recipes.reading import configure, read_recipe
from resnet_ops.tracking.tracker import check_service
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import TRAIN_OPTIONS, read_space, read_space_file

from .config_options import (
    Debug,
    Json,
    Options,
    Overwrite,
    Resume,
    options_of,
    refuse_changes,
    runs_dir_option,
    shared_by_trials,
)
from .console import Output, short, test_accuracy_line, unmeasured_images_line
from .job_arguments import tune_arguments
from .progress import SearchProgress
from .startup import check_run, importing, process_started_at
from .submit import submit

if TYPE_CHECKING:
    from resnet_ops.tuning.job import TuneResult
    from resnet_ops.tuning.results import Trial

EXAMPLES = """
resnet-ops tune  # depths 8, 14, 20, 32 and learning rates on the built-in digits, about 3 minutes on 2 cores
resnet-ops tune --data cifar10 --depths 20,32,44,56,110 --lr 0.01:0.8 --trials 32 --search optuna
resnet-ops tune --family resnet,plain weight_decay=1e-5:1e-3 batch_size=64,128  # search any option of train
resnet-ops tune --resume my-search  # resume an interrupted search
resnet-ops export my-search --onnx  # export the best network of the search
"""

COLUMNS = (">trial", "network", ">lr", ">epochs", ">chosen", ">last", ">parameters", ">time (s)", "status")
OPTIONAL = ("time (s)", "parameters", "last", "epochs")  # left out in this order in a narrow terminal
SHOWN = 10  # trials

CHANGEABLE = TuneConfig.changeable_on_resume()


@options_of(TuneConfig, shared_by_trials(TrainConfig))
def tune(
    options: Options,
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPTION=VALUES",
            help="More of the search space: any option of train with a value, a list (64,128) or a range (1e-5:1e-3).",
        ),
    ] = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Search depth, learning rate and other hyperparameters, and keep the best network.

    The directory runs/NAME/ becomes the run of the best trial, to be exported like any other; it also holds the trials
    (trials.jsonl, trials/) and a report (tune.html, tune.png).
    """
    output = Output(json)
    if resume is not None:
        refuse_changes(options, resume, CHANGEABLE, "search", pairs or ())
    config = options.make(TuneConfig, given=options.typed(TrainConfig))
    base = configure(**config.train_options)
    if is_job_server(base.cluster):
        _submit(base, options.values, pairs or [], resume, overwrite, output)
        return
    check_service(base.track)
    check_run(base, resume, overwrite)
    with SearchProgress() as progress:
        with importing():
            from resnet_ops.tuning import job

        started_at = process_started_at()
        try:
            if resume is None:
                result = job.tune(
                    config,
                    pairs or (),
                    overwrite=overwrite,
                    observer=progress,
                    started_at=started_at,
                    stop=options.stop,
                )
            else:
                changes = {name: value for name, value in options.values.items() if name in CHANGEABLE}
                result = job.resume(
                    base.runs_dir, resume, changes=changes, observer=progress, started_at=started_at, stop=options.stop
                )
        finally:
            _draw(progress)  # also if it was interrupted
    _show(output, result)


def _submit(
    base: TrainConfig, typed: dict[str, Any], pairs: list[str], resume: str | None, overwrite: bool, output: Output
) -> None:
    """Search on a cluster; the content of local files is passed as arguments."""
    typed = dict(typed)
    if typed.get("space"):
        pairs = [f"{name}={_listed(value)}" for name, value in read_space_file(typed.pop("space")).items()] + pairs
    if str(typed.get("recipe", "")).endswith(".toml"):
        recipe = typed.pop("recipe")
        for name, value in read_recipe(recipe).items():
            if name in TRAIN_OPTIONS:
                pairs = [f"{name}={_listed(value)}", *pairs]
            elif name in {*TuneConfig.model_fields, *shared_by_trials(TrainConfig)[1]}:
                typed.setdefault(name, value)
            else:
                raise UserError(
                    f"{recipe}: {name} is no option of tune, and a job gets options alone.",
                    "Remove it, or start the search on the cluster itself, with --cluster auto.",
                )
    if resume is None:
        read_space(TuneConfig.of(), pairs)  # to report errors here
    arguments = functools.partial(tune_arguments, typed=typed, changeable=CHANGEABLE, pairs=pairs, overwrite=overwrite)
    submit(base, resume, arguments, output, "tune")


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _draw(progress: SearchProgress) -> None:
    if progress.search is None or not progress.trials:
        return
    from resnet_ops.reporting.search_report import draw

    progress.progress({"stage": "Drawing"})
    draw(progress.search)


def _show(output: Output, result: "TuneResult") -> None:
    best, search = result.best, result.search
    select = best.selected_by

    def rank(trial: "Trial") -> tuple[float, int, int]:
        score = trial.score(select)
        return (math.inf if score is None else -score), trial.parameters, trial.id

    ranked = sorted(result.trials, key=rank)
    marks = ("[bold]" if trial.id == best.trial else "" for trial in ranked[:SHOWN])
    cells = [[f"{mark}{cell}" for cell in _cells(trial)] for mark, trial in zip(marks, ranked, strict=False)]
    output.show_table(COLUMNS, cells, OPTIONAL, ("network", "status"))
    if len(ranked) > SHOWN:
        output.show(f"  and {len(ranked) - SHOWN} more: {short(search.trials_file)}")
    run, data = search.run, search.read().data
    last = "" if best.last_val_accuracy is None else f" (its last epoch: {percent(best.last_val_accuracy)})"
    runs_dir = runs_dir_option(run.path.parent)
    by = "" if select == "top1" or best.metric is None else f" by {metric_text(select, best.metric)}"
    output.show(
        f"[bold]{percent(best.val_accuracy or 0)}[/] validation accuracy: selected trial {best.trial}, {best.model} "
        f"with lr {best.lr:g}, {best.why}; total {result.total_s:.0f} s",
        f"  chosen{by} on these {data.val_images:,} images: best of {len(result.trials)} trials and of their "
        f"epochs{last}",
    )
    output.warn_of(best.majority_baseline)
    if best.test_accuracy is not None:
        output.show(test_accuracy_line(best.test_accuracy, run.read_as_written()))
    elif data.test_images:
        output.show(unmeasured_images_line(run, runs_dir))
    output.show(
        f"  best weights  {short(best.checkpoint)}",
        f"  report        {short(search.page)}",
        f"  next          resnet-ops export {run.name} --onnx{runs_dir}",
    )
    if result.refit is not None:
        output.show(
            f"  refit         resnet-ops export {result.refit} --onnx{runs_dir}, fitted on all images: without a "
            "validation accuracy"
        )
    output.end(result)


def _cells(trial: Any) -> list[str]:
    others = " ".join(f"{n}={v}" for n, v in trial.options.items() if n not in ("model", "depth", "family", "lr"))
    return [
        str(trial.id),
        f"{trial.model} {others}".strip(),
        f"{trial.lr:.3g}",
        str(trial.epochs),
        "" if trial.val_accuracy is None else percent(trial.val_accuracy),
        "" if trial.last_val_accuracy is None else percent(trial.last_val_accuracy),
        f"{trial.parameters:,}" if trial.parameters else "",
        f"{trial.seconds:.0f}",
        trial.status,
    ]
