"""Trains a study's networks and says what they show; what the command line's `study` calls.

A study is a search whose points are given and that stops nobody: its trainings, its resuming and its directory are
those of `tuning`. What is its own is what it makes of them.
"""

import time
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.config import IMAGE_DEFAULTS, TrainConfig
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.machine import versions
from resnet_ops.models import parse_name
from resnet_ops.options import as_typed
from resnet_ops.recipes.reading import configure
from resnet_ops.study import layers, plan, verdict
from resnet_ops.study.config import Study, StudyConfig
from resnet_ops.study.figures import pictures
from resnet_ops.study.results import (
    Kind,
    Network,
    NetworkGroup,
    Published,
    StudyResult,
    StudyRow,
    group_networks,
    markdown,
    published,
)
from resnet_ops.training.preflight import OF_THE_IMAGES
from resnet_ops.tuning import job as tuning
from resnet_ops.tuning.job import SearchKind
from resnet_ops.tuning.results import Search, SearchObserver, SearchRecord, Trial


def study(
    config: StudyConfig,
    *,
    overwrite: bool = False,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
) -> StudyResult:
    """Make a study anew.

    Args:
        config: What is studied.
        overwrite: Replace a study or a run of the same name.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: The request was wrong (nothing was written), or all trainings failed, or it was interrupted (what
            was done before is still there).
    """
    started_at = started_at or time.time()
    result = tuning.search_space(
        plan.searched(config),
        plan.space(config, (observer or SearchObserver()).warn),
        purpose=_purpose(config.study, config.nodes),
        overwrite=overwrite,
        observer=observer,
        started_at=started_at,
    )
    return conclude(result.search, started_at)


def resume(
    runs_dir: Path,
    name: str,
    *,
    study: Study,
    nodes: int | None = None,
    changes: dict[str, Any] | None = None,
    observer: SearchObserver | None = None,
    started_at: float | None = None,
) -> StudyResult:
    """Go on with a study where it stopped: trainings that are done stay, those at hand go on.

    Args:
        runs_dir: Folder that holds it.
        name: The study.
        study: Which it is.
        nodes: Machines to spread the trainings over from now on.
        changes: Options of where it runs that are to differ from now on.
        observer: Told of the progress.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such study, its images or the code are others than when it began, another process is at
            it, it does not fit, or the work failed.
    """
    started_at = started_at or time.time()
    purpose = _purpose(study, nodes)
    result = tuning.resume(runs_dir, name, changes=changes, purpose=purpose, observer=observer, started_at=started_at)
    return conclude(result.search, started_at)


def conclude(search: Search, started_at: float) -> StudyResult:
    """Say what the trainings show that are over by now: study.json, table.md and the figures.

    Raises:
        UserError: None is over, or a file is damaged.
        PausedError: The disk is full.
    """
    record, trials = search.read(), search.trials()
    networks = [_network(search, trial) for trial in trials]
    groups = group_networks(networks)
    if not groups:
        raise UserError(f"No training of {search.run.name} has finished yet.", "Resume it.", WORK_FAILED)
    study: Study = record.command.split()[-1]  # type: ignore[assignment]  # as `_purpose` made it
    figures = _draw(search, study, groups, record)
    settled = search.run.read_as_written().config
    update = {name: getattr(settled, name) for name in OF_THE_IMAGES}
    base = configure(**record.config.train_options).model_copy(update=update)
    beside = published(record.data, base)
    findings = StudyResult(
        name=search.run.name,
        study=study,
        status="finished" if sum(trial.is_settled for trial in trials) == record.planned else "unfinished",
        run_dir=as_typed(search.run.path),
        data=record.data,
        device=record.device,
        training=_training(base),
        rows=[_row(group, beside) for group in groups],
        verdict=" ".join(filter(None, (_verdict(study, groups, record), verdict.failures(networks)))),
        gradients=verdict.gradients(groups) if study != "shortcuts" else "",
        published=beside.source if beside else None,
        figures=figures,
        networks=networks,
        versions=versions(),
        total_s=time.time() - started_at,
    )
    files.write_atomically(search.run.path / "study.json", findings.model_dump_json(indent=1).encode() + b"\n")
    files.write_atomically(search.run.path / "table.md", markdown(findings).encode())
    return findings


def _purpose(study: Study, nodes: int | None) -> SearchKind:
    return SearchKind(f"study {study}", layers.record, nodes)


def _network(search: Search, trial: Trial) -> Network:
    run = search.trial_run(trial)
    curve = tuple(run.epochs())
    last = curve[-1] if curve and trial.status == "finished" else None
    began = files.is_file(run.record_file)
    return Network(
        model=trial.model,
        depth=trial.depth,
        kind=_kind(trial.model),
        shortcut=run.read_as_written().config.shortcut if began else None,
        seed=int(trial.options["seed"]),
        status=trial.status,
        reason=trial.reason,
        parameters=trial.parameters,
        seconds=trial.seconds,
        train_error=last.train_error if last else None,
        val_error=last.val_error if last else None,
        best_val_error=min(epoch.val_error for epoch in curve) if last else None,
        trial=str(Path(search.trials_dir.name, trial.name)),
        curve=curve,
        layers=layers.read(run) if began else None,
    )


def _kind(model: str) -> Kind:
    kind = parse_name(model).kind
    return kind if kind in ("plain", "resnet") else "baseline"


def _training(config: TrainConfig) -> dict[str, Any]:
    """How all were trained: what is not the default, and what matters most in any case."""
    always = {name: getattr(config, name) for name in ("epochs", "batch_size", "schedule", "lr", *IMAGE_DEFAULTS)}
    return {"data": config.data, **always, **config.unusual()}


def _row(group: NetworkGroup, beside: Published | None) -> StudyRow:
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
        published_error=beside.error(group.model, group.shortcut) if beside else None,
    )


def _verdict(study: Study, groups: list[NetworkGroup], record: SearchRecord) -> str:
    if study == "responses":
        return verdict.responses(groups)
    return (verdict.shortcuts if study == "shortcuts" else verdict.degradation)(groups, record.data)


def _draw(search: Search, study: Study, groups: list[NetworkGroup], record: SearchRecord) -> list[str]:
    """Draw the figures; their files."""
    drawn = []
    for picture in pictures(study, groups, record.data.val_images):
        for ending, content in zip(("png", "svg"), picture.to_files(), strict=True):
            place = search.run.path / f"{picture.name}.{ending}"
            files.write_atomically(place, content)
            drawn.append(as_typed(place))
    return drawn
