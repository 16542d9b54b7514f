"""Jobs without a cluster: the command that a job runs, the code that it is shipped, and addresses that lead nowhere."""

import filecmp
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from resnet_ops.cli.job_arguments import train_arguments

from resnet_ops.config import TrainConfig
from resnet_ops.orchestration import job_protocol, jobs
from resnet_ops.orchestration.job_client import UnreachableError
from resnet_ops.orchestration.job_protocol import parse_milestone
from resnet_ops.orchestration.packaging import copy_package
from resnet_ops.recipes.reading import configure
from tests.conftest import Ended
from tests.integration.test_cli import refused

Cli = Callable[..., Ended]
EVERY_OPTION = TrainConfig.of(
    model="plain56",
    shortcut="C",
    weights="imagenet",
    weights_key="state_dict",
    expect=76.1,
    data="s3://bucket/a folder/*.parquet",
    val_data="s3://bucket/another folder",
    data_root=Path("/shared/data"),
    image_column="picture",
    label_column="what it is",
    image_size="160x200",
    resize="180x220",
    test_fraction=0.1,
    allow_duplicates=True,
    on_bad_image="fail",
    max_bad_images=0.2,
    stream="on",
    cache_dir=Path("/scratch/a cache"),
    epochs=3,
    batch_size=7,
    auto_batch=True,
    accumulate=2,
    lr=1e-5,
    schedule="steps",
    milestones="1/3,0.9",
    lr_decay=0.3,
    warmup_ratio=0.2,
    warmup_steps=10,
    warmup="constant",
    momentum=0.5,
    nesterov=True,
    weight_decay=0.0,
    norm_weight_decay=0.0,
    label_smoothing=0.1,
    class_weights="cat=2,dog=0.5",
    sampler="balanced",
    focal_gamma=2.0,
    clip_grad_norm=1.5,
    ema=0.999,
    random_resized_crop=True,
    cutout=2,
    mixup=0.2,
    cutmix=1.0,
    trivial_augment=True,
    color_jitter=0.4,
    random_erasing=0.25,
    head_lr=10.0,
    freeze="layer2",
    freeze_epochs=2,
    zero_init_residual=True,
    sync_batchnorm=True,
    channels_last=False,
    fused=False,
    compile="max-autotune",
    cuda_graph="off",
    deterministic=True,
    recipe="paper",
    crop_padding=0,
    flip=False,
    seed=2**63 - 1,
    device="cpu",
    cluster="http://head:8265",
    nodes="2:4",
    gpus_per_node=8,
    cpus_per_worker=2,
    workers_per_node=3,
    wait=0.0,
    max_failures=0,
    hang_timeout=0.5,
    precision="bf16",
    name="a.b-c_d",
    runs_dir=Path("/shared/a folder"),
    checkpoint_every="10m",
    patience=5,
    max_time="30m",
    target_accuracy=95.5,
    num_to_keep=5,
    select="macro-f1",
    track="mlflow",
)
# What does not go with others of them.
APART: dict[str, Any] = {
    "fit_all": True, "optimizer": "adamw", "rand_augment": "2,9", "freeze_batchnorm": True,
    "gradient_checkpointing": True,
}  # fmt: skip
BESIDE = {option: {"weights": "imagenet"} for option in ("weights_key", "expect")}  # what they are about


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Return the parameters that the command line parses from these arguments."""
    (script,) = entry_points(group="console_scripts", name="resnet-ops")
    group = typer.main.get_command(script.load().__globals__["app"])
    train: Any = group.commands["train"]  # type: ignore[attr-defined]
    assert arguments[0] == "train"
    parameters: dict[str, Any] = train.make_context("train", arguments[1:]).params
    return parameters


def test_help(cli: Cli) -> None:
    top = cli("jobs")
    assert top.code == 0
    assert not top.err
    for name in ("list", "logs", "stop"):
        assert name in top.out
        page = cli("jobs", name, "--help")
        assert page.code == 0
        for word in ("--cluster", "--json", "--debug", "RAY_API_SERVER_ADDRESS", "resnet-ops jobs logs mine"):
            assert word in page.out


@pytest.mark.parametrize("field", TrainConfig.model_fields)
def test_every_option_reaches_the_cluster(field: str) -> None:
    value, beside = APART.get(field, getattr(EVERY_OPTION, field)), BESIDE.get(field, {})
    assert value != TrainConfig.default(field)
    config = TrainConfig.of(**{"schedule": "steps", **beside, field: value})
    sent = train_arguments(config)
    given = parsed(shlex.split(shlex.join(sent)))  # through a shell, as on the cluster
    expected = config.model_copy(update={"cluster": "auto"})
    assert TrainConfig.of(**{name: given[name] for name in TrainConfig.model_fields}) == expected
    assert given["json"]
    if field != "recipe":  # what is left at its default is not sent
        assert len(sent) == 3 + len({"schedule", *beside, field} - {"cluster"})


def test_all_options_at_once_and_flags() -> None:
    given = parsed(train_arguments(EVERY_OPTION, overwrite=True))
    expected = EVERY_OPTION.model_copy(update={"cluster": "auto"})
    assert TrainConfig.of(**{name: given[name] for name in TrainConfig.model_fields}) == expected
    assert given["overwrite"]
    assert "--flip" in train_arguments(TrainConfig.of(flip=True))
    assert "--runs-dir=s3://bucket/runs" in train_arguments(TrainConfig.of(runs_dir=Path("s3://bucket/runs")))
    given = parsed(train_arguments(EVERY_OPTION, resume=True, overwrite=True))
    assert (given["resume"], Path(given["runs_dir"])) == ("a.b-c_d", EVERY_OPTION.runs_dir)
    assert not given["overwrite"]
    assert given["model"] == TrainConfig.default("model")  # the run knows its own


def test_what_was_typed_beside_a_recipe_reaches_the_cluster() -> None:
    """Also where it is the default again, which is not what the recipe says, or what is chosen by the images."""
    config = configure(recipe="fast", epochs=TrainConfig.default("epochs"), nesterov=False)
    arguments = train_arguments(config)
    given = parsed(arguments)
    assert (given["recipe"], given["epochs"], given["nesterov"]) == ("fast", 30, False)
    assert given["weight_decay"] == config.weight_decay == 5e-4
    assert not any(argument.startswith(("--lr=", "--batch-size=")) for argument in arguments)  # by the images there
    arguments = train_arguments(configure(lr=TrainConfig.default("lr"), model=TrainConfig.default("model")))
    assert {"--lr=0.1", "--model=auto"} <= {*arguments}


def test_a_recipes_file_stays_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "fast"\nbatch_size = 64\n')
    given = parsed(train_arguments(configure(recipe=str(file))))
    assert (given["recipe"], given["batch_size"], given["nesterov"]) == (None, 64, True)


def test_the_shipped_code_is_the_installed_one_whole(tmp_path: Path) -> None:
    folder = copy_package(tmp_path)
    root = Path(__file__).parents[2]
    assert folder.name == "resnet_ops"
    for part, source in {"": "resnet_ops", "cli": "cli", "cluster": "cluster"}.items():
        files = [file.relative_to(root / source) for file in (root / source).rglob("*") if file.is_file()]
        files = [file for file in files if "__pycache__" not in file.parts]
        _, differing, missing = filecmp.cmpfiles(root / source, folder / part, files, shallow=False)
        assert not differing
        assert not missing
    assert not list(folder.rglob("*.pyc"))
    # By itself: with neither site-packages' finder nor the checkout, though with what the two need.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "from resnet_ops.cli import main; print(main.__file__); sys.argv = ['x', '--version']; main.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == [str(folder / "cli" / "main.py"), "resnet-ops", ended.stdout.split()[-1]]


def test_a_job_says_what_differs_where_it_runs() -> None:
    def says(**changed: str) -> str:
        versions = {**job_protocol.installed_versions(), **changed}
        env = {job_protocol.SUBMITTER: ",".join(f"{name}={version}" for name, version in versions.items())}
        return subprocess.run(
            [sys.executable, "-m", "resnet_ops.cli.main", "--version"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stderr

    milestone_line, started = says().splitlines()
    assert parse_milestone(milestone_line) == "begun"
    assert parse_milestone(started) is None
    assert started.startswith("resnet-ops started on ")
    _, _, line = says(Ray="2.1.0", Python="3.99").splitlines()
    assert "(submitted from 2.1.0)" in line
    assert f"Python {job_protocol.installed_versions()['Python']} (submitted from 3.99)" in line
    assert "torch" not in line


class Old(BaseHTTPRequestHandler):
    """Answers as Ray of an earlier version does."""

    versions: ClassVar = {"ray_version": "1.13.0"}

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(str(self.versions).replace("'", '"').encode() if known else b"404: Not Found")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Older(Old):
    versions: ClassVar = {"ray_version": "2.40.0"}


class Page(Old):
    versions: ClassVar = {"some": "page"}


def served(answers: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (Old, ["runs Ray 1.13.0, which is too old"]),
        (Older, ["runs Ray 2.40.0; resnet-ops needs 2.60 there", "pip install"]),
        (Page, ["is not a Ray job server", "8265"]),
        (BaseHTTPRequestHandler, ["is not a Ray job server"]),
    ],
)
def test_what_is_no_job_server_or_too_old(cli: Cli, answers: type[BaseHTTPRequestHandler], words: list[str]) -> None:
    for address in served(answers):
        refused(cli("train", "--runs-dir", "/shared", "--cluster", address), *words)


class WithoutLogs(jobs.JobServer):
    """A server that is there while the machine, or the proxy, that has its logs is not."""

    def __init__(self) -> None:
        self.address, self.requests = "http://head:8265", 0

    async def _follow(self, log: jobs.JobLog, on_line: Callable[[str], None]) -> None:
        log.add("a line\nhalf a", on_line)

    def job(self, job_id: str) -> jobs.Job:
        return jobs.Job(
            id=job_id,
            run="my-run",
            status="SUCCEEDED",
            message="",
            entrypoint="",
            exit_code=0,
            started=None,
            ended=None,
            died=False,
        )

    def log(self, job_id: str) -> str:
        self.requests += 1
        raise UnreachableError(f"The logs of {job_id} do not come.", "")


def test_a_job_that_has_ended_is_told_though_its_log_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LOG_TIMEOUT_S", 0.5)
    server, lines = WithoutLogs(), list[str]()
    assert server.follow(jobs.JobLog("j"), lines.append).status == "SUCCEEDED"
    assert lines == ["a line", "half a"]
    assert server.requests > 1


def test_nothing_answers(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for command in (("jobs", "list"), ("jobs", "logs", "x"), ("jobs", "stop", "x"), ("train", "--runs-dir", "/shared")):
        ended = cli(*command, "--cluster", f"http://127.0.0.1:{port}")
        refused(
            ended, f"http://127.0.0.1:{port}: nothing is listening there", "kubectl port-forward", f"ssh -L {port}:"
        )
    refused(cli("jobs", "list", "--cluster", "http://no.such.host.invalid:8265"), "host no.such.host.invalid")


@pytest.mark.parametrize(
    "address",
    [
        "http://me:s3cret@head:8265",
        "http://s3cret@head:8265",
        "https://head:8265/?token=s3cret",
        "me:s3cret@head:8265",
        "http://me:s3cret@head:port",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(cli: Cli, address: str) -> None:
    commands = [("jobs", "list", "--json")]
    if "://" in address:
        commands.append(("train", "--runs-dir", "/shared", "--json"))
    for arguments in commands:
        ended = cli(*arguments, "--cluster", address)
        assert ended.code == 2
        assert "s3cret" not in ended.out + ended.err
        assert "address" in ended.json["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--runs-dir must be a path that every node of the cluster sees", "'runs'"]),
        (["--runs-dir", "~/runs"], ["--runs-dir must be"]),
        (["--runs-dir", "/shared", "--data", "images/x"], ["--data must be", "'images/x'", "--data /shared/x"]),
        (
            ["--runs-dir", "/shared", "--weights", "mine/resnet50.pth"],
            ["--weights must be", "--weights /shared/resnet50"],
        ),
        (["--runs-dir", "s3://me:s3cret@bucket/x"], ["s3://... contains credentials"]),
        (["--runs-dir", "/shared", "--data", "s3://me:s3cret@bucket/x"], ["--data contains"]),
    ],
)
def test_places_must_be_the_clusters(cli: Cli, options: list[str], words: list[str]) -> None:
    ended = cli("train", "--cluster", "http://127.0.0.1:9", *options)
    refused(ended, *words)
    assert "s3cret" not in ended.err


def test_a_search_on_a_cluster_has_every_option_of_its_recipe_or_is_refused(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('lr = 0.1\nmax_time = "30m"\n')
    ended = cli("tune", "--cluster", "http://127.0.0.1:9", "--runs-dir", "/shared", "--recipe", recipe)
    refused(ended, "mine.toml: max_time is no option of tune", "--cluster auto")
