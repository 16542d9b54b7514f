"""`resnet-ops study`: runs an experiment of the ResNet paper here or as a job on a cluster, and shows its verdict."""

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
from resnet_ops.tracking.tracker import check_service
from resnet_ops.tuning.results import Trial

from .config_options import Debug, Json, Options, Overwrite, Resume, options_of, refuse_changes, shared_by_trials
from .console import Output, err, image_counts, short
from .job_arguments import tune_arguments
from .progress import SearchProgress
from .startup import check_run, importing, process_started_at
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

OPTIONAL = ("parameters", "seeds", "training error (%)")  # columns, left out in this order in a narrow terminal

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
    known = StudyConfig.choices("study")
    if not options.given:
        typer.echo(options.context.get_help())
        return
    if "study" not in options.given:
        raise UserError("Which study is not said.", f"Name it first: resnet-ops study {'|'.join(known)}.")
    output, name = Output(json), options.values["study"]
    if name not in known:
        raise UserError(f"There is no study {name!r}.", f"{did_you_mean(name, known)} There are: {', '.join(known)}.")
    if resume is not None:
        refuse_changes(options, resume, CHANGEABLE, "study")
    config = options.make(StudyConfig, given=options.typed(TrainConfig))
    base = configure(**config.train_options)
    if is_job_server(base.cluster):
        _submit(base, options.values, config, resume, overwrite, output)
        return
    check_service(base.track)
    check_run(base, resume, overwrite)
    with StudyProgress(config) as progress:
        with importing():
            from resnet_ops.study import job

        started_at = process_started_at()
        try:
            if resume is None:
                result = job.study(
                    config, overwrite=overwrite, observer=progress, started_at=started_at, stop=options.stop
                )
            else:
                changes = {name: value for name, value in options.values.items() if name in CHANGEABLE - {"nodes"}}
                result = job.resume(
                    base.runs_dir,
                    resume,
                    study=config.study,
                    nodes=config.nodes,
                    changes=changes,
                    observer=progress,
                    started_at=started_at,
                    stop=options.stop,
                )
        except UserError:
            if progress.search is not None:  # the results so far
                with contextlib.suppress(UserError, OSError):
                    job.write_results(progress.search, started_at)
            raise
    _show(output, result)


class StudyProgress(SearchProgress):
    """Shows the progress of a study."""

    def __init__(self, config: StudyConfig) -> None:
        super().__init__()
        self.config = config

    def search_started(self, search: "Search", record: "SearchRecord", slots: "TrialSlots") -> None:
        """Show the networks and the resources."""
        self.search, self.record, self.stage = search, record, "Starting Ray"
        data, points = record.data, record.space.points
        networks = ", ".join(dict.fromkeys(_label(point) for point in points))
        seeds = len({point["seed"] for point in points})
        at_once = min(slots.max_concurrent, record.planned, record.config.max_concurrent or slots.max_concurrent)
        report_milestone("created")
        err.print(
            f"[bold]{record.planned} training runs[/] on [bold]{escape(data.name)}[/] "
            f"({image_counts(data.train_images, data.val_images, data.test_images)}), {record.epochs} epochs "
            f"each: {networks}; {seeds} seed{'s' if seeds > 1 else ''}; {at_once} at once on {slots.device}; "
            f"study [bold]{escape(search.run.name)}[/]",
            soft_wrap=True,
        )

    def _show_end(self, trial: Trial) -> None:
        done = sum(each.has_ended for each in self.trials.values())
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
    train, val = epochs[-1].train_error, epochs[-1].val_error
    return f"error {percent(train, 1):>6} train, {'' if val is None else percent(val, 1):>6} val  "


def _submit(
    base: TrainConfig, typed: dict[str, Any], config: StudyConfig, resume: str | None, overwrite: bool, output: Output
) -> None:
    """Run a study on a cluster."""
    if str(typed.get("recipe", "")).endswith(".toml"):
        raise UserError(f"--recipe {typed['recipe']} is a file on this machine only.", "Use a built-in recipe.")
    command = ("study", config.study)
    base = base.model_copy(update={"model": config.study})  # its default name begins with the model's
    submit(
        base,
        resume,
        functools.partial(tune_arguments, typed=typed, changeable=CHANGEABLE, overwrite=overwrite, command=command),
        output,
        " ".join(command),
    )


def _show(output: Output, result: "StudyResult") -> None:
    from resnet_ops.study.results import table_cells, table_columns

    columns = [name if name in ("network", "shortcuts") else f">{name}" for name in table_columns(result)]
    output.show_table(columns, [table_cells(result, row) for row in result.rows], OPTIONAL, ("network",))
    figures = [to_path(name) for name in result.figures if name.endswith(".png")]
    folder = to_path(result.run_dir)
    output.show(
        *([f"published: {result.published}"] if result.published else []),
        f"[bold]{escape(result.summary)}[/]",
        f"  page          {short(folder / 'study.html')}",
        f"  figures       {', '.join(short(figure) for figure in figures)}, and as .svg",
        f"  table         {short(folder / 'table.md')}",
        f"  results       {short(folder / 'study.json')}; total {result.total_s:.0f} s",
    )
    output.end(result)
