"""`resnet-ops tune`: from options to a search, and what one sees of it."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_ops.config import WHERE_IT_RUNS, TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.orchestration.arguments import tune_arguments
from resnet_ops.orchestration.jobserver import is_job_server
from resnet_ops.recipes.reading import configure, read
from resnet_ops.tracking.tracker import check
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import OPTIONS, read_file
from resnet_ops.tuning.space import read as read_space

from .clock import importing, process_started_at
from .console import Output, short, table
from .options import Debug, Json, RunsDir, given, option, runs_dir_option
from .search_screen import SearchScreen
from .submit import submit

EXAMPLES = """
[bold]resnet-ops tune[/]  depths 8, 14, 20, 32 and learning rates on the embedded digits, some 3 minutes on 2 cores

[bold]resnet-ops tune --data cifar10 --depths 20,32,44,56,110 --lr 0.01:0.8 --trials 32 --search optuna[/]

[bold]resnet-ops tune --family resnet,plain weight_decay=1e-5:1e-3 batch_size=64,128[/]  any option of train

[bold]resnet-ops tune --resume my-search[/]  go on where it stopped

[bold]resnet-ops export my-search --onnx[/]  the best network of the whole search
"""
default, train_default = TuneConfig.default, TrainConfig.default
SEARCH, SHARED, PLACE, RUN = "Search", "What all trials share", "Where it runs", "Run"


def _option(name: str, panel: str = SEARCH) -> Any:
    return option(TuneConfig, name, panel)


def _shared(name: str, panel: str = SHARED) -> Any:
    return option(TrainConfig, name, panel)


def tune(
    context: typer.Context,
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTION=VALUES]...",
            help="More to search: any option of train with a value, some (64,128) or a range (1e-5:1e-3).",
        ),
    ] = None,
    depths: Annotated[str, _option("depths")] = default("depths"),
    family: Annotated[str, _option("family")] = default("family"),
    lr: Annotated[str, _option("lr")] = default("lr"),
    space: Annotated[Path | None, _option("space")] = default("space"),
    trials: Annotated[int | None, _option("trials")] = default("trials"),
    search: Annotated[str, _option("search")] = default("search"),
    scheduler: Annotated[str, _option("scheduler")] = default("scheduler"),
    grace: Annotated[int | None, _option("grace")] = default("grace"),
    refit: Annotated[bool, _option("refit")] = default("refit"),
    data: Annotated[str, _shared("data")] = train_default("data"),
    val_data: Annotated[str | None, _shared("val_data")] = train_default("val_data"),
    data_root: Annotated[Path | None, _shared("data_root")] = train_default("data_root"),
    image_size: Annotated[int | None, _shared("image_size")] = train_default("image_size"),
    cache_dir: Annotated[Path | None, _shared("cache_dir")] = train_default("cache_dir"),
    recipe: Annotated[str | None, option(TrainConfig, "recipe", SHARED, "--recipe", "--config")] = (
        train_default("recipe")
    ),
    epochs: Annotated[int, _shared("epochs")] = train_default("epochs"),
    batch_size: Annotated[int, _shared("batch_size")] = train_default("batch_size"),
    seed: Annotated[int, _shared("seed")] = train_default("seed"),
    device: Annotated[str, _shared("device", PLACE)] = train_default("device"),
    cluster: Annotated[str | None, _shared("cluster", PLACE)] = train_default("cluster"),
    cpus_per_trial: Annotated[int | None, _option("cpus_per_trial", PLACE)] = default("cpus_per_trial"),
    gpus_per_trial: Annotated[float | None, _option("gpus_per_trial", PLACE)] = default("gpus_per_trial"),
    nodes_per_trial: Annotated[int, _option("nodes_per_trial", PLACE)] = default("nodes_per_trial"),
    max_concurrent: Annotated[int | None, _option("max_concurrent", PLACE)] = default("max_concurrent"),
    wait: Annotated[float | None, _shared("wait", PLACE)] = train_default("wait"),
    max_failures: Annotated[int, _shared("max_failures", PLACE)] = train_default("max_failures"),
    name: Annotated[str | None, _shared("name", RUN)] = train_default("name"),
    runs_dir: Annotated[Path, RunsDir] = train_default("runs_dir"),
    track: Annotated[str, _shared("track", RUN)] = train_default("track"),
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a search where it stopped.", rich_help_panel=RUN)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a search of the same name.", rich_help_panel=RUN)
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Search depth, learning rate, and any other option of train, and keep the best network.

    The directory runs/NAME/ becomes the run of the best trial, to be exported like any other;
    beside it lie the trials (trials.jsonl, trials/) and the pictures (tune.html, tune.png).
    """
    output = Output(json)
    typed = {name: context.params[name] for name in given(context)}
    if resume is not None:
        refuse_changes(typed, pairs, resume)
    searched = {name: value for name, value in typed.items() if name in TuneConfig.model_fields}
    shared = {name: value for name, value in typed.items() if name in TrainConfig.model_fields and name != "lr"}
    config = TuneConfig.of(given=shared, **searched)
    base = configure(**shared)
    if is_job_server(base.cluster):
        _submit(base, typed, pairs or [], resume, overwrite, output)
        return
    check(base.track)
    with SearchScreen() as screen:
        with importing():
            from resnet_ops.tuning import job

        started_at = process_started_at()
        try:
            if resume is None:
                result = job.tune(config, pairs or (), overwrite=overwrite, watcher=screen, started_at=started_at)
            else:
                changes = {name: value for name, value in shared.items() if name in WHERE_IT_RUNS}
                result = job.resume(runs_dir, resume, changes=changes, watcher=screen, started_at=started_at)
        finally:
            _draw(screen)  # also what was found before it was stopped
    _show(output, result)


def _submit(
    base: TrainConfig, typed: dict[str, Any], pairs: list[str], resume: str | None, overwrite: bool, output: Output
) -> None:
    """Search on a cluster; files that are here are told rather than named."""
    typed = dict(typed)
    if typed.get("space"):
        pairs = [f"{name}={_listed(value)}" for name, value in read_file(typed.pop("space")).items()] + pairs
    if str(typed.get("recipe", "")).endswith(".toml"):
        for name, value in read(typed.pop("recipe")).items():
            if name in OPTIONS:
                pairs = [f"{name}={_listed(value)}", *pairs]
            else:
                typed.setdefault(name, value)
    if resume is None:
        read_space(TuneConfig.of(), pairs)  # what is wrong is told here
    arguments = functools.partial(tune_arguments, typed=typed, pairs=pairs, overwrite=overwrite)
    submit(base, resume, arguments, output, "tune")


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _draw(screen: SearchScreen) -> None:
    if screen.search is None or not screen.trials:
        return
    from resnet_ops.reporting.search import draw

    screen.progress({"stage": "Drawing"})
    draw(screen.search)


def refuse_changes(typed: dict[str, Any], pairs: list[str] | None, resume: str, what: str = "search") -> None:
    """Refuse what is not of where a resumed search, or study, runs."""
    changed = sorted(typed.keys() - WHERE_IT_RUNS - {"study", "resume", "runs_dir", "json", "debug", "pairs"})
    if changed or pairs:
        option = pairs[0] if pairs else "--" + changed[0].replace("_", "-")
        raise UserError(
            f"--resume {resume} keeps the options the {what} was started with; {option} cannot be changed.",
            f"Remove {option}, or start a new {what}.",
        )


def _show(output: Output, result: Any) -> None:
    best, search = result.answer.trial, result.search
    shown = table(">trial", "network", ">lr", ">epochs", ">accuracy", ">parameters", ">time (s)", "status")
    ranked = sorted(result.trials, key=lambda t: (t.val_accuracy is None, -(t.val_accuracy or 0), t.parameters, t.id))
    for trial in ranked[:10]:
        mark = "[bold]" if trial.id == best.id else ""
        cells = row(trial)
        shown.add_row(*(f"{mark}{cell}" for cell in cells))
    output.show(shown)
    if len(ranked) > 10:
        output.show(f"  and {len(ranked) - 10} more: {short(search.trials_file)}")
    run = search.run
    where = runs_dir_option(run.path.parent)
    output.show(
        f"[bold]{percent(best.val_accuracy)}[/] validation accuracy: selected trial {best.id}, {best.model} with "
        f"lr {best.lr:g}, {result.answer.why}; total {result.total_s:.0f} s",
        f"  best weights  {short(run.best / 'model.safetensors')}",
        f"  report        {short(search.page)}",
        f"  next          resnet-ops export {run.name} --onnx{where}",
    )
    if result.refit is not None:
        output.show(f"  refit         resnet-ops export {result.refit.name} --onnx{where}, trained on all images")
    output.end(
        {
            "name": run.name,
            "run_dir": run.path,
            "status": "finished",
            "trials": [
                {
                    "id": trial.id,
                    "model": trial.model,
                    "lr": trial.lr,
                    "epochs": trial.epochs,
                    "val_accuracy": trial.val_accuracy,
                    "status": trial.status,
                    "reason": trial.reason,
                    "options": trial.options,
                    "parameters": trial.parameters,
                    "seconds": trial.seconds,
                }
                for trial in result.trials
            ],
            "best": {
                "trial": best.id,
                "model": best.model,
                "lr": best.lr,
                "val_accuracy": best.val_accuracy,
                "checkpoint": run.best / "model.safetensors",
                "why": result.answer.why,
            },
            "refit": result.refit and result.refit.name,
            "total_s": result.total_s,
        }
    )


def row(trial: Any) -> list[str]:
    """A trial as cells of a table."""
    others = " ".join(f"{n}={v}" for n, v in trial.options.items() if n not in ("depth", "family", "lr"))
    return [
        str(trial.id),
        f"{trial.model} {others}".strip(),
        f"{trial.lr:.3g}",
        str(trial.epochs),
        "" if trial.val_accuracy is None else percent(trial.val_accuracy),
        f"{trial.parameters:,}" if trial.parameters else "",
        f"{trial.seconds:.0f}",
        trial.status,
    ]
