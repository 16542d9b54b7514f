"""`resnet-ops study`: real trainings on real Ray, a driver that is killed."""

import functools
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from resnet_ops.cli.job_arguments import tune_arguments

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.runs import Run
from resnet_ops.study import job, layers
from resnet_ops.study.config import StudyConfig
from resnet_ops.training import job as training
from resnet_ops.tuning import job as tuning
from resnet_ops.tuning.results import Search
from tests.conftest import COMMAND, Ended
from tests.data.samples import shades, write_class_folders
from tests.integration.test_cli import refused

pytestmark = pytest.mark.usefixtures("ray_session")
EPOCHS = 3


@pytest.fixture(scope="module")
def studied(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:  # type: ignore[type-arg]
    """A small study, killed when some of it was done and some at hand, and gone on with."""
    runs_dir = tmp_path_factory.mktemp("runs")
    options = ["--depths", "8,14", "--seeds", "1", "--epochs", str(EPOCHS), "--runs-dir", str(runs_dir), "--name", "s"]
    started = subprocess.Popen([*COMMAND, "study", "degradation", *options], stderr=subprocess.PIPE, text=True)
    search = Search(Run(runs_dir / "s"))

    def done() -> int:
        return sum(t.has_ended for t in search.trials()) if search.trials_file.exists() else 0

    end = time.monotonic() + 90
    while done() < 1 or not any(0 < len(search.trial_run(n).epochs()) < EPOCHS for n in (2, 3, 4)):
        assert started.poll() is None, started.stderr and started.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    started.kill()
    started.wait()
    before = {t.id: search.trial_run(t).metrics_file.read_bytes() for t in search.trials() if t.has_ended}

    assert job.write_results(search, time.time()).status == "unfinished"  # what is done can be seen

    findings = job.resume(runs_dir, "s", study="degradation")
    for number, content in before.items():
        assert search.trial_run(number).metrics_file.read_bytes() == content
    return runs_dir / "s", findings.model_dump(mode="json")


@pytest.mark.slow
def test_a_killed_study_goes_on_to_every_number(studied: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    folder, told = studied
    assert (told["name"], told["run_dir"], told["status"]) == ("s", str(folder), "finished")
    assert {(n["model"], n["depth"], n["kind"], n["seed"]) for n in told["networks"]} == {
        (f"{kind}{depth}", depth, kind, 0) for kind in ("plain", "resnet") for depth in (8, 14)
    }
    for network in told["networks"]:
        assert [epoch["epoch"] for epoch in network["curve"]] == list(range(1, EPOCHS + 1))
        assert network["val_error"] == network["curve"][-1]["val_error"]
        assert network["train_error"] == network["curve"][-1]["train_error"]
        assert len(network["layers"]["trained"]) == network["depth"] - 1
    assert len(told["rows"]) == 4
    for row in told["rows"]:
        (error,) = [n["val_error"] for n in told["networks"] if n["model"] == row["model"]]
        assert (row["seeds"], row["lost"], row["val_error"]["mean"]) == (1, 0, error)
    assert "One seed per network" in told["verdict"]
    assert "At initialization in plain14" in told["gradients"]
    assert [Path(figure).name for figure in told["figures"]] == [
        "degradation.png", "degradation.svg", "norms.png", "norms.svg",
    ]  # fmt: skip
    assert all(Path(figure).stat().st_size > 10_000 for figure in told["figures"])
    assert json.loads((folder / "study.json").read_text()) == told
    table = (folder / "table.md").read_text()
    assert told["verdict"] in table
    assert told["verdict"].startswith(told["summary"])
    page = Path(told["page"]).read_text()
    assert told["summary"] in page
    assert page.count("<figure") == len(told["figures"]) / 2
    assert len([line for line in table.splitlines() if line.startswith(("| plain", "| resnet"))]) == 4
    assert "published" not in table  # digits are not in the paper


def test_its_trainings_are_those_of_train(
    studied: tuple[Path, dict],  # type: ignore[type-arg]
    tmp_path: Path,
) -> None:
    folder, told = studied
    last = told["networks"][-1]  # trained after the kill
    alone = training.train(
        TrainConfig.of(
            model=last["model"],
            seed=last["seed"],
            lr=0.05,
            crop_padding=0,
            epochs=EPOCHS,
            cpus_per_worker=1,
            runs_dir=tmp_path,
            name="alone",
        )
    )
    ours = Run(folder / last["trial"])
    assert [(e.train_loss, e.val_loss, e.val_error) for e in ours.epochs()] == [
        (e.train_loss, e.val_loss, e.val_error) for e in alone.run.epochs()
    ]
    found = layers.read_layers(ours)
    assert found is not None
    assert found.initial != found.trained


def test_a_study_is_gone_on_with_as_that_study(studied: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    folder, _ = studied
    with pytest.raises(UserError, match="resnet-ops study degradation --resume s"):
        tuning.resume(folder.parent, "s")
    with pytest.raises(UserError, match=r"s is a study.*resnet-ops study degradation --resume s"):
        training.resume(folder.parent, "s")


@pytest.mark.slow  # what a study does is seen above, what this one trains and says in tests/study
def test_shortcuts_are_compared(cli: Callable[..., Ended], tmp_path: Path) -> None:
    options = ["--options", "A,C", "--depths", 8, "--epochs", 1, "--seeds", 1, "--runs-dir", tmp_path]
    ended = cli("study", "shortcuts", *options, "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    assert told["name"] == "shortcuts-digits"
    assert [(row["model"], row["shortcut"], row["parameters"]) for row in told["rows"]] == [
        ("resnet8", "A", 75_002), ("resnet8", "C", 78_042),
    ]  # fmt: skip
    assert "has the lowest validation error" in told["verdict"]
    assert [Path(figure).name for figure in told["figures"]] == ["shortcuts.png", "shortcuts.svg"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("degradatoin",), ("no study 'degradatoin'", "Did you mean degradation?")),
        (("degradation", "--depths", "8,21"), ("--depths: resnet21 is not a valid depth",)),
        (("degradation", "--options", "A"), ("--options selects shortcuts",)),
        (("degradation", "--depths", "18,34"), ("34 needs images of at least 32x32",)),
        (("degradation", "--nodes", "2", "--cluster", "local"), ("--nodes 2 needs 2 nodes", "this machine has 1")),
        (("responses", "--cpus-per-trial", "64"), ("A trial needs 64 CPU cores on one node",)),
        (("degradation", "--resume", "nothing"), ("There is no run called 'nothing'",)),
        (("degradation", "--resume", "nothing", "--seeds", "3"), ("--seeds cannot be changed",)),
        (("degradation", "--seeds", "0"), ("--seeds",)),
        (("degradation", "--name", "imagenet"), ("--name imagenet: these are torchvision's weights",)),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    cli: Callable[..., Ended], tmp_path: Path, arguments: tuple[str, ...], told: tuple[str, ...]
) -> None:
    refused(cli("study", *arguments, "--runs-dir", tmp_path / "runs"), *told)
    assert not list(tmp_path.rglob("tune.json"))


def test_it_shows_its_help_where_no_study_is_named(cli: Callable[..., Ended]) -> None:
    shown = cli("study")
    assert shown.code == 0
    assert all(f"{study}:" in shown.out for study in StudyConfig.choices("study"))
    refused(cli("study", "--resume", "mine"), "Which study is not said", "degradation|responses|shortcuts")


def test_what_was_typed_reaches_a_job_server() -> None:
    base = TrainConfig.of(name="n", runs_dir="/shared/runs", cluster="http://head:8265")
    typed = {"study": "shortcuts", "options": "A,C", "seeds": 3, "nodes": 4, "recipe": "paper"}
    options = {"typed": typed, "changeable": StudyConfig.changeable_on_resume()}
    told = functools.partial(tune_arguments, base, **options, command=("study", "shortcuts"))
    places = ["--runs-dir=/shared/runs", "--name=n", "--cluster=auto", "--json"]
    assert told() == ["study", "shortcuts", "--options=A,C", "--seeds=3", "--nodes=4", "--recipe=paper", *places]
    resumed = ["study", "shortcuts", "--resume=n", "--nodes=4", "--runs-dir=/shared/runs", "--cluster=auto", "--json"]
    assert told(True) == resumed


@pytest.mark.slow
def test_baselines_stand_beside_the_others(cli: Callable[..., Ended], tmp_path: Path) -> None:
    write_class_folders(tmp_path / "images", shades({"light": 180, "dark": 60}, 20, (64, 64)))
    options = ("--data", tmp_path / "images", "--depths", "8", "--baselines", "--seeds", 1, "--epochs", 2)
    ended = cli("study", "degradation", *options, "--batch-size", 8, "--runs-dir", tmp_path / "runs", "--json")
    assert ended.code == 0, ended.err
    found = {network["model"]: network for network in ended.json["networks"]}
    assert set(found) == {"plain8", "resnet8", "alexnet8", "vgg19", "googlenet22"}
    assert {n["kind"] for n in found.values()} == {"plain", "resnet", "baseline"}
    assert all(0 <= network["val_error"] <= 1 for network in found.values())
    assert "earlier architectures" in ended.json["verdict"]
    trial = Path(ended.json["run_dir"], found["googlenet22"]["trial"])
    exported = cli("export", trial, "--onnx", "--json")
    assert exported.code == 0, exported.err
