"""Trains the networks of a study and writes its results; what the command line's `study` calls.

A study is a search over fixed points without early stopping: how its trainings run and resume, and their directory,
are those of `tuning`. The study's own files are in `results`.
"""

import time
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.architectures import parse_name
from resnet_ops.config import TrainConfig
from resnet_ops.config_base import as_typed
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.machine import versions
from resnet_ops.recipe_config import IMAGE_DEFAULTS
from resnet_ops.recipes.reading import configure
from resnet_ops.reporting import page, style
from resnet_ops.reporting.page import Picture
from resnet_ops.runs import Run
from resnet_ops.stop_request import StopRequest
from resnet_ops.study import layers, plan, verdict
from resnet_ops.study.config import Study, StudyConfig
from resnet_ops.study.figures import study_figures
from resnet_ops.study.published import PublishedError, not_comparable, published_error
from resnet_ops.study.results import (
    Network,
    NetworkGroup,
    NetworkKind,
    StudyResult,
    StudyRow,
    group_networks,
    table_cells,
    table_columns,
    to_markdown,
)
from resnet_ops.training.preflight import OF_THE_IMAGES
from resnet_ops.tuning import job as tuning
from resnet_ops.tuning.job import SearchKind
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Trial

SUMMARY_SENTENCES = 3  # on the terminal, and at the top of the page


def study(
    config: StudyConfig,
    *,
    overwrite: bool = False,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
) -> StudyResult:
    """Run a new study.

    Args:
        config: What to study.
        overwrite: Replace a study or a run of the same name.
        observer: Receives the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        stop: Asks the study to stop, its trainings at checkpoints.

    Raises:
        UserError: The request is wrong (nothing was written), or all trainings failed, or the study was interrupted
            (the finished trainings are kept).
    """
    started_at = started_at or time.time()
    result = tuning.search_space(
        plan.search_config(config),
        plan.search_space(config, (observer or SearchObserver()).warn),
        kind=_search_kind(config.study, config.nodes),
        overwrite=overwrite,
        observer=observer,
        started_at=started_at,
        stop=stop,
    )
    return write_results(result.search, started_at)


def resume(
    runs_dir: Path,
    name: str,
    *,
    study: Study,
    nodes: int | None = None,
    changes: dict[str, Any] | None = None,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
    stop: StopRequest | None = None,
) -> StudyResult:
    """Resume a study: trainings that have ended stay, the others continue from their checkpoints.

    Args:
        runs_dir: Folder that holds it.
        name: The study.
        study: Which study it is.
        nodes: Nodes to run on from now on.
        changes: Options of where it runs that differ from now on.
        observer: Receives the progress.
        started_at: When the user asked, in seconds since 1970; by default now.
        stop: Asks the study to stop, its trainings at checkpoints.

    Raises:
        UserError: There is no such study, its images or the code have changed, another process runs it, it does not
            fit on the machines, or the work failed.
    """
    started_at = started_at or time.time()
    kind = _search_kind(study, nodes)
    result = tuning.resume(
        runs_dir, name, changes=changes, kind=kind, observer=observer, started_at=started_at, stop=stop
    )
    return write_results(result.search, started_at)


def write_results(search: Search, started_at: float) -> StudyResult:
    """Write study.json, table.md and the figures from the trainings that have finished so far; return the result.

    Raises:
        UserError: None has finished, or a file is damaged.
        PausedError: The disk is full.
    """
    record, trials = search.read(), search.trials()
    networks = [_read_network(search, trial) for trial in trials]
    groups = group_networks(networks)
    if not groups:
        raise UserError(f"No training of {search.run.name} has finished yet.", "Resume it.", WORK_FAILED)
    study: Study = record.command.split()[-1]  # type: ignore[assignment]  # as `_search_kind` made it
    trained = search.run.read_as_written().config
    update = {name: getattr(trained, name) for name in OF_THE_IMAGES}
    base = configure(**record.config.train_options).model_copy(update=update)
    published = [_published_error(search, group) for group in groups]
    sentences = [*verdict.failures(networks), *_verdict(study, groups, record)]
    pictures = study_figures(study, groups, record.data.val_images)
    result = StudyResult(
        name=search.run.name,
        study=study,
        status="finished" if sum(trial.has_ended for trial in trials) == record.planned else "unfinished",
        run_dir=as_typed(search.run.path),
        data=record.data,
        device=record.device,
        training=_shared_options(base),
        rows=[_row(group, paper) for group, paper in zip(groups, published, strict=True)],
        summary=" ".join(sentences[:SUMMARY_SENTENCES]),
        verdict=" ".join(sentences),
        gradients=verdict.gradients(groups) if study != "shortcuts" else "",
        published=next((paper.source for paper in published if paper and not paper.departures), None),
        not_comparable=not_comparable([(g.model, paper) for g, paper in zip(groups, published, strict=True)]),
        page=as_typed(search.run.path / "study.html"),
        figures=_write_figures(search, pictures),
        networks=networks,
        versions=versions(),
        total_s=time.time() - started_at,
    )
    files.write_atomically(search.run.path / "study.json", result.model_dump_json(indent=1).encode() + b"\n")
    files.write_atomically(search.run.path / "table.md", to_markdown(result).encode())
    files.write_atomically(search.run.path / "study.html", _draw_page(result, pictures))
    return result


def _search_kind(study: Study, nodes: int | None) -> SearchKind:
    return SearchKind(f"study {study}", layers.record_layers, nodes)


def _read_network(search: Search, trial: Trial) -> Network:
    run = search.trial_run(trial)
    curve = tuple(run.epochs())
    last = curve[-1] if curve and trial.status == "finished" else None
    started = files.is_file(run.record_file)
    return Network(
        model=trial.model,
        depth=trial.depth,
        kind=_kind(trial.model),
        shortcut=run.read_as_written().config.shortcut if started else None,
        seed=int(trial.options["seed"]),
        status=trial.status,
        reason=trial.reason,
        parameters=trial.parameters,
        seconds=trial.seconds,
        train_error=last.train_error if last else None,
        val_error=last.val_error if last else None,
        best_val_error=min(epoch.val_error for epoch in curve if epoch.val_error is not None) if last else None,
        trial=str(Path(search.trials_dir.name, trial.name)),
        curve=curve,
        layers=layers.read_layers(run) if started else None,
    )


def _kind(model: str) -> NetworkKind:
    kind = parse_name(model).kind
    return kind if kind in ("plain", "resnet") else "baseline"


def _shared_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options of all trainings: those that are not the default, and the most important in any case."""
    important = {name: getattr(config, name) for name in ("epochs", "batch_size", "schedule", "lr", *IMAGE_DEFAULTS)}
    return {"data": config.data, **important, **config.unusual()}


def _published_error(search: Search, group: NetworkGroup) -> PublishedError | None:
    first = group.networks[0]
    trained = Run(search.run.path / first.trial).read_as_written()
    return published_error(group.model, group.shortcut, trained.config, trained.data, first.curve[-1].step)


def _row(group: NetworkGroup, published: PublishedError | None) -> StudyRow:
    return StudyRow(
        model=group.model,
        kind=group.kind,
        depth=group.depth,
        shortcut=group.shortcut,
        parameters=group.parameters,
        seeds=len(group.networks),
        lost=group.lost,
        train_error=group.train_error,
        val_error=group.val_error,
        published_error=published.error if published and not published.departures else None,
    )


def _verdict(study: Study, groups: list[NetworkGroup], record: SearchRecord) -> list[str]:
    if study == "responses":
        return verdict.responses(groups)
    return (verdict.shortcuts if study == "shortcuts" else verdict.degradation)(groups, record.data)


def _draw_page(result: StudyResult, pictures: list[Picture]) -> bytes:
    with style.applied():
        charts = [(picture, picture.svg()) for picture in pictures]
    rows = [table_cells(result, row) for row in result.rows]
    return page.render("study.html.j2", result=result, charts=charts, columns=table_columns(result), rows=rows)


def _write_figures(search: Search, pictures: list[Picture]) -> list[str]:
    """Write the figures; return their files."""
    written = []
    for picture in pictures:
        for ending, content in zip(("png", "svg"), picture.to_files(), strict=True):
            file = search.run.path / f"{picture.name}.{ending}"
            files.write_atomically(file, content)
            written.append(as_typed(file))
    return written
