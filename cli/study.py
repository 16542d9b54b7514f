"""`resnet-ops study`: from options to a study, and what one sees of it."""

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from resnet_ops.config import WHERE_IT_RUNS, TrainConfig
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.files import to_path
from resnet_ops.formatting import percent
from resnet_ops.orchestration.arguments import tune_arguments
from resnet_ops.orchestration.jobserver import is_job_server
from resnet_ops.recipes.reading import configure
from resnet_ops.study.config import StudyConfig
from resnet_ops.tracking.tracker import check
from resnet_ops.tuning.results import Trial

from .clock import importing, process_started_at
from .console import Output, err, short, table
from .options import Debug, Json, RunsDir, given, option
from .search_screen import SearchScreen
from .submit import submit
from .tune import refuse_changes

if TYPE_CHECKING:
    from resnet_ops.orchestration.pool import Pool
    from resnet_ops.study.results import Findings
    from resnet_ops.tuning.results import Search, SearchRecord

EXAMPLES = """
[bold]resnet-ops study degradation[/]  plain and residual networks of 8 to 110 layers on the embedded digits

[bold]resnet-ops study degradation --data cifar10 --depths 20,32,44,56,110 --recipe paper --seeds 5[/]  figure 6

[bold]resnet-ops study degradation --data /imagenet --depths 18,34 --recipe torchvision[/]  figure 4

[bold]resnet-ops study responses[/]  does F(x) tend to 0 as depth grows? figure 7

[bold]resnet-ops study shortcuts --options A,B,C[/]  table 3

[bold]resnet-ops study degradation --resume my-study[/]  go on where it stopped
"""
default, train_default = StudyConfig.default, TrainConfig.default
STUDY, SHARED, PLACE, RUN = "Study", "What all trainings share", "Where it runs", "Run"


def _option(name: str, panel: str = STUDY) -> Any:
    return option(StudyConfig, name, panel)


def _shared(name: str, panel: str = SHARED) -> Any:
    return option(TrainConfig, name, panel)


def study(
    context: typer.Context,
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="|".join(StudyConfig.choices("study")), help=StudyConfig.model_fields["study"].description
        ),
    ] = None,
    depths: Annotated[str | None, _option("depths")] = default("depths"),
    baselines: Annotated[bool, _option("baselines")] = default("baselines"),
    options: Annotated[str | None, _option("options")] = default("options"),
    seeds: Annotated[int, _option("seeds")] = default("seeds"),
    data: Annotated[str, _shared("data")] = train_default("data"),
    val_data: Annotated[str | None, _shared("val_data")] = train_default("val_data"),
    data_root: Annotated[Path | None, _shared("data_root")] = train_default("data_root"),
    image_size: Annotated[int | None, _shared("image_size")] = train_default("image_size"),
    cache_dir: Annotated[Path | None, _shared("cache_dir")] = train_default("cache_dir"),
    recipe: Annotated[str | None, option(TrainConfig, "recipe", SHARED, "--recipe", "--config")] = (
        train_default("recipe")
    ),
    epochs: Annotated[int | None, _option("epochs", SHARED)] = default("epochs"),
    lr: Annotated[float | None, _option("lr", SHARED)] = default("lr"),
    batch_size: Annotated[int, _shared("batch_size")] = train_default("batch_size"),
    seed: Annotated[int, _shared("seed")] = train_default("seed"),
    device: Annotated[str, _shared("device", PLACE)] = train_default("device"),
    cluster: Annotated[str | None, _shared("cluster", PLACE)] = train_default("cluster"),
    nodes: Annotated[int | None, _option("nodes", PLACE)] = default("nodes"),
    cpus_per_trial: Annotated[int | None, _option("cpus_per_trial", PLACE)] = default("cpus_per_trial"),
    gpus_per_trial: Annotated[float | None, _option("gpus_per_trial", PLACE)] = default("gpus_per_trial"),
    max_concurrent: Annotated[int | None, _option("max_concurrent", PLACE)] = default("max_concurrent"),
    wait: Annotated[float | None, _shared("wait", PLACE)] = train_default("wait"),
    max_failures: Annotated[int, _shared("max_failures", PLACE)] = train_default("max_failures"),
    name: Annotated[str | None, _shared("name", RUN)] = train_default("name"),
    runs_dir: Annotated[Path, RunsDir] = train_default("runs_dir"),
    track: Annotated[str, _shared("track", RUN)] = train_default("track"),
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a study where it stopped.", rich_help_panel=RUN)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a study of the same name.", rich_help_panel=RUN)
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Repeat an experiment of the paper: many trainings beside each other, figures, a table, a verdict.

    They are the trainings of `train`, in parallel on whatever Ray has. The
    directory runs/NAME/ holds study.json (every number), table.md, the figures
    as PNG and SVG, and the trainings themselves (trials/).
    """
    if study is None:
        typer.echo(context.get_help())
        return
    output = Output(json)
    if study not in StudyConfig.choices("study"):
        known = StudyConfig.choices("study")
        raise UserError(f"There is no study {study!r}.", f"{did_you_mean(study, known)} There are: {', '.join(known)}.")
    typed = {name: context.params[name] for name in given(context)}
    if resume is not None:
        refuse_changes(typed, None, resume, "study")
    own = {name: value for name, value in typed.items() if name in StudyConfig.model_fields}
    shared = {name: value for name, value in typed.items() if name in TrainConfig.model_fields and name not in own}
    config = StudyConfig.of(**{"study": study} | own, given=shared)
    base = configure(**shared)
    if is_job_server(base.cluster):
        _submit(base, typed, config, resume, overwrite, output)
        return
    check(base.track)
    with StudyScreen(config) as screen:
        with importing():
            from resnet_ops.study import job

        started_at = process_started_at()
        try:
            if resume is None:
                findings = job.study(config, overwrite=overwrite, watcher=screen, started_at=started_at)
            else:
                changes = {name: value for name, value in shared.items() if name in WHERE_IT_RUNS}
                findings = job.resume(
                    runs_dir,
                    resume,
                    study=config.study,
                    nodes=nodes,
                    changes=changes,
                    watcher=screen,
                    started_at=started_at,
                )
        except UserError:
            if screen.search is not None:  # what was found before it was stopped
                with contextlib.suppress(UserError, OSError):
                    job.conclude(screen.search, started_at)
            raise
    _show(output, findings)


class StudyScreen(SearchScreen):
    """Shows a study on stderr."""

    def __init__(self, config: StudyConfig) -> None:
        super().__init__()
        self.config = config

    def search_begun(self, search: "Search", record: "SearchRecord", pool: "Pool") -> None:
        """Say what is trained, where."""
        self.search, self.record, self.stage = search, record, "Starting Ray"
        data, points = record.data, record.space.points
        networks = ", ".join(dict.fromkeys(_label(point) for point in points))
        seeds = len({point["seed"] for point in points})
        at_once = min(pool.at_once, record.planned, record.config.max_concurrent or pool.at_once)
        err.print(
            f"[bold]{record.planned} trainings[/] on [bold]{escape(data.name)}[/] ({data.train_images:,} training and "
            f"{data.val_images:,} validation images), {record.epochs} epochs each: {networks}; "
            f"{seeds} seed{'s' if seeds > 1 else ''}; {at_once} at once on {pool.device}; "
            f"study [bold]{escape(search.run.name)}[/]",
            soft_wrap=True,
        )

    def _say(self, trial: Trial) -> None:
        done = sum(each.is_settled for each in self.trials.values())
        reason = f" {escape(trial.reason)}" if trial.reason else ""
        last = "" if self.search is None or trial.status == "failed" else _errors(self.search, trial)
        err.print(
            f"{done:>{len(str(self.record.planned))}}/{self.record.planned}  {_label(trial.options):<11} "
            f"seed {trial.options['seed']}  {last}{trial.status}{reason}",
            soft_wrap=True,
        )

    def _best(self) -> str:
        return ""


def _label(point: Any) -> str:
    shortcut = f" {point['shortcut']}" if "shortcut" in point else ""
    return f"{point['family']}{point['depth']}{shortcut}"


def _errors(search: "Search", trial: Trial) -> str:
    epochs = search.trial_run(trial).epochs()
    if not epochs:
        return ""
    return f"error {percent(epochs[-1].train_error, 1):>6} train, {percent(epochs[-1].val_error, 1):>6} val  "


def _submit(
    base: TrainConfig, typed: dict[str, Any], config: StudyConfig, resume: str | None, overwrite: bool, output: Output
) -> None:
    """Study on a cluster."""
    if str(typed.get("recipe", "")).endswith(".toml"):
        raise UserError(f"--recipe {typed['recipe']} is a file on this machine only.", "Use a built-in recipe.")
    command = ("study", config.study)
    base = base.model_copy(update={"model": config.study})  # which it is named after
    submit(
        base,
        resume,
        functools.partial(tune_arguments, typed=typed, overwrite=overwrite, command=command),
        output,
        " ".join(command),
    )


def _show(output: Output, findings: "Findings") -> None:
    from resnet_ops.study.table import cells, columns

    shown = table(*(name if name in ("network", "shortcuts") else f">{name}" for name in columns(findings)))
    for row in findings.rows:
        shown.add_row(*cells(findings, row))
    figures = [to_path(name) for name in findings.figures if name.endswith(".png")]
    folder = to_path(findings.run_dir)
    output.show(
        shown,
        *([f"published: {findings.published}"] if findings.published else []),
        f"[bold]{escape(findings.verdict)}[/]",
        *([findings.gradients] if findings.gradients else []),
        f"  figures       {', '.join(short(figure) for figure in figures)}, and as .svg",
        f"  table         {short(folder / 'table.md')}",
        f"  results       {short(folder / 'study.json')}; total {findings.total_s:.0f} s",
    )
    output.end(findings.model_dump(mode="json"))
