"""`resnet-ops study`: from options to a study, and what one sees of it."""

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.files import to_path
from resnet_ops.formatting import percent
from resnet_ops.orchestration.job_client import is_job_server
from resnet_ops.orchestration.job_protocol import report_milestone
from resnet_ops.recipes.reading import configure
from resnet_ops.study.config import StudyConfig
from resnet_ops.tracking.tracker import check
from resnet_ops.tuning.results import Trial

from .arguments import tune_arguments
from .console import Output, err, short, table
from .options import Debug, Json, Options, Overwrite, Resume, options_of, refuse_changes, shared_by_trials
from .progress import SearchScreen
from .startup import importing, process_started_at
from .submit import submit

if TYPE_CHECKING:
    from resnet_ops.orchestration.trial_slots import TrialSlots
    from resnet_ops.study.results import StudyResult
    from resnet_ops.tuning.results import Search, SearchRecord

EXAMPLES = """
resnet-ops study degradation  # plain and residual networks of 8 to 110 layers on the built-in digits
resnet-ops study degradation --data cifar10 --depths 20,32,44,56,110 --recipe paper --seeds 5  # figure 6
resnet-ops study degradation --data /imagenet --depths 18,34 --recipe torchvision  # figure 4
resnet-ops study responses  # do the responses of residual branches tend to 0 as depth grows? figure 7
resnet-ops study shortcuts --options A,B,C  # table 3
resnet-ops study degradation --resume my-study  # resume an interrupted study
"""

CHANGEABLE = StudyConfig.changeable_on_resume()


@options_of(StudyConfig, shared_by_trials(TrainConfig), arguments=["study"])
def study(
    options: Options,
    resume: Resume = None,
    overwrite: Overwrite = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Reproduce an experiment of the ResNet paper: many training runs, figures, a table and a verdict.

    The training runs are those of `train`, in parallel on the resources of Ray. The directory runs/NAME/ holds
    study.json (all results), table.md, the figures as PNG and SVG, and the runs themselves (trials/).
    """
    if "study" not in options.given:
        typer.echo(options.context.get_help())
        return
    output = Output(json)
    study, known = options.values["study"], StudyConfig.choices("study")
    if study not in known:
        raise UserError(f"There is no study {study!r}.", f"{did_you_mean(study, known)} There are: {', '.join(known)}.")
    if resume is not None:
        refuse_changes(options, resume, CHANGEABLE, "study")
    config = options.make(StudyConfig, given=options.typed(TrainConfig))
    base = configure(**config.train_options)
    if is_job_server(base.cluster):
        _submit(base, options.values, config, resume, overwrite, output)
        return
    check(base.track)
    with StudyScreen(config) as screen:
        with importing():
            from resnet_ops.study import job

        started_at = process_started_at()
        try:
            if resume is None:
                findings = job.study(config, overwrite=overwrite, observer=screen, started_at=started_at)
            else:
                changes = {name: value for name, value in options.values.items() if name in CHANGEABLE - {"nodes"}}
                findings = job.resume(
                    base.runs_dir,
                    resume,
                    study=config.study,
                    nodes=config.nodes,
                    changes=changes,
                    observer=screen,
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

    def search_begun(self, search: "Search", record: "SearchRecord", pool: "TrialSlots") -> None:
        """Say what is trained, where."""
        self.search, self.record, self.stage = search, record, "Starting Ray"
        data, points = record.data, record.space.points
        networks = ", ".join(dict.fromkeys(_label(point) for point in points))
        seeds = len({point["seed"] for point in points})
        at_once = min(pool.max_concurrent, record.planned, record.config.max_concurrent or pool.max_concurrent)
        report_milestone("created")
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
        functools.partial(tune_arguments, typed=typed, changeable=CHANGEABLE, overwrite=overwrite, command=command),
        output,
        " ".join(command),
    )


def _show(output: Output, findings: "StudyResult") -> None:
    from resnet_ops.study.results import cells, columns

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
    output.end(findings)
