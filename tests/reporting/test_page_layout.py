"""Every page fits a phone and a desk: nothing is cut off, and what scrolls shows that it does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from starlette.testclient import TestClient

from resnet_ops.reporting import page, style
from resnet_ops.reporting.run_report import RunData, render_report
from resnet_ops.reporting.search_report import draw
from resnet_ops.runs import Run
from resnet_ops.serving.app import build_app
from resnet_ops.serving.limits import Served, ServiceLimits
from resnet_ops.serving.service import InferenceService
from resnet_ops.study.figures import study_figures
from resnet_ops.study.results import StudyResult, StudyRow, group_networks, table_cells, table_columns
from resnet_ops.training import job
from resnet_ops.training.checkpoint import read_best
from tests.conftest import Ended
from tests.export.samples import metadata_of
from tests.reporting import samples
from tests.reporting.reading import Layout, lay_out, needs_browser
from tests.study.samples import DATA, layers, network

PHONE, DESK = 400, 1400


def study_page() -> str:
    """Return a page with each kind of chart that studies have."""
    groups = group_networks(
        [network(model, 0.1, 0.1, layers=layers(1, 2)) for model in ("plain20", "resnet20", "resnet56")]
    )
    rows = [
        StudyRow(
            model=group.model, kind=group.kind, depth=group.depth, shortcut=group.shortcut, parameters=group.parameters,
            seeds=1, lost=0, train_error=group.train_error, val_error=group.val_error, published_error=0.1,
        )
        for group in groups
    ]  # fmt: skip
    result = StudyResult(
        name="s", study="responses", status="finished", run_dir="runs/s", data=DATA, device="cpu", training={"lr": 0.1},
        rows=rows, verdict="", gradients="", published="Table 6", not_comparable=None, figures=[],
        networks=[each for group in groups for each in group.networks], versions={"python": "3.11"}, total_s=1.0,
    )  # fmt: skip
    with style.applied():
        charts = [(picture, picture.svg()) for picture in study_figures("responses", groups, DATA.val_images)]
    cells = [table_cells(result, row) for row in rows]
    return page.render(
        "study.html.j2", result=result, charts=charts, columns=table_columns(result), rows=cells
    ).decode()


def service_page(trained: job.TrainResult) -> str:
    """Return the page of a service that is never asked to classify."""
    limits = ServiceLimits(waiting=1, upload_bytes=1, receive_s=1, connections=1, pixels=1, batch=1, replicas=1)

    async def classify(pixels: np.ndarray) -> NoReturn:
        raise NotImplementedError

    served = Served("model.onnx", metadata_of(read_best(trained.run)[0]), "cpu")
    return TestClient(build_app(InferenceService(served, limits, classify))).get("/docs").text


@pytest.fixture
def pages(trained: job.TrainResult, tmp_path: Path, cli: Callable[..., Ended]) -> dict[str, str]:
    """One of each kind, by name."""
    run = RunData.read(trained.run)
    shutil.copytree(trained.run.path, tmp_path / "another-run")
    another = RunData.read(Run(tmp_path / "another-run"))
    search = samples.search(
        tmp_path / "searched",
        samples.trial(1, "resnet8", [0.6, 0.12], options={"lr": 0.02, "batch_size": 64}, lr=0.02),
        samples.trial(2, "plain20", [0.9, 0.3], options={"lr": 0.8, "batch_size": 128}, lr=0.8, reason="worse " * 20),
    )
    draw(search)
    ended = cli("evaluate", trained.run.path, "--split", "val", "--suspects", 5, "--output", tmp_path / "evaluated")
    assert ended.code == 0, ended.err
    return {
        "report": render_report([run]).decode(),
        "comparison": render_report([run, another]).decode(),
        "evaluation": (tmp_path / "evaluated/evaluation.html").read_text(),
        "search": search.page.read_text(),
        "study": study_page(),
        "service": service_page(trained),
    }


@needs_browser
def test_pages_fit_a_phone_and_a_desk(pages: dict[str, str]) -> None:
    layouts = lay_out(pages, (PHONE, DESK))
    for (name, width), layout in layouts.items():
        assert layout == Layout(width, [], layout.scrolled), name
        assert not layout.scrolled or width == PHONE, (name, layout.scrolled)
    assert layouts["evaluation", PHONE].scrolled  # its table, which the checks above are worth something for
