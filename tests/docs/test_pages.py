"""The pages and the README, gone through as a reader would: each line is given to a shell, in the page's order."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import torch
import torchvision

from resnet_ops.data.opening import open_source
from resnet_ops.runs import Run
from tests.conftest import Ended
from tests.data.samples import encode_pixels, shades, write_class_folders, write_parquet
from tests.docs.reading import PAGES, ROOT, TUTORIAL, typed, write_files
from tests.integration.test_cloud import server as s3  # noqa: F401
from tests.tracking.test_mlflow import server as mlflow  # noqa: F401
from tests.waiting import wait_for

# What this machine cannot do, and what stands in for it.
ELSEWHERE = {
    r"make |pip install |source \.venv": "changes the environment of these very tests; .ci/run begins with it",
    r"sbatch |cd my-slurm": "needs a Slurm; tests/cluster/test_slurm.py has one",
    r"kubectl ": "needs Kubernetes; tests/cluster/test_templates.py holds the manifests against their schemas",
    r"ray (up|exec|down) |cd my-aws|python prepare.py|\(umask 077": "needs an account in a cloud; test_templates.py "
    "holds the files against Ray's schema, and runs prepare.py at a stand-in",
    r"docker |cd my-containers|mkdir -m 700 secrets": "needs a Docker daemon; test_templates.py holds the file "
    "against its schema",
}
# So that each line takes seconds; of an option that is given twice the last one counts.
STUDY = "--epochs 1 --seeds 1"
SHORTER = {
    r"train --name my-run --epochs 100": "--epochs 12",
    r"train --model (plain|resnet)56": "--epochs 1 --overwrite",
    r"train --data photos .*--name ": "--epochs 2 --image-size 72 --overwrite",
    r"train --data photos .*--recipe torchvision": "--epochs 2 --image-size 72 --batch-size 8 --lr 0.01",
    r"train --data photos .*--freeze-epochs": "--epochs 3 --image-size 72",
    r"train --data photos ": "--epochs 2 --image-size 72",
    r"tune --data photos ": "--epochs 1 --trials 1 --image-size 72 --depths 18 --lr 0.001,0.002",
    r"train .*--name ": "--epochs 2 --overwrite",  # what the page takes for granted may be there
    r"train\b(?!.*--resume)": "--epochs 2",
    r"export weights\.pth": "--out imagenet.onnx",  # the page's model.onnx is another one
    r"export .*--precision int8": "--max-accuracy-drop 3",
    r"tune\b(?!.*--resume)": "--epochs 2 --trials 2",
    r"study degradation .*--depths 18,34": f"{STUDY} --depths 18 --batch-size 64",
    r"study shortcuts": f"{STUDY} --depths 8 --options A,B",
    r"study (?!.*--resume)": f"{STUDY} --depths 8",
    r"bench ": "--batch 1 --seconds 0.05 --no-compile",
}
# Stopped by Ctrl-C after an epoch, so that the line after it has something to go on with.
STOPPED = r"resnet-ops (train --name my-run --epochs 100|train --resume my-run$)"
WITHOUT_GPU = r"resnet-ops (?!cluster ).*(--gpus-per-(node|trial)|--provider cuda)"
# Where readers have a folder, an address or a dataset of their own.
PLACES = {
    r"(?<=[ =])(~|/data)?/imagenet\b": "{home}/imagenet",
    r"(?<=[ =])~/images\b": "{home}/images",
    r"(?<=[ =])/shared/runs\b": "{home}/shared",
    r"--data cifar10( --val-data test)?\b": "--data digits",  # which have no test images; CIFAR-10 would be downloaded
    r"--weights imagenet\b": "--weights {home}/resnet18.pth",  # torchvision's would be downloaded
    r"http://mlflow\.example:5000": "{mlflow}",
    r"10\.0\.0\.1:6379": "{address}",
    r"http://head:8265": "{dashboard}",
    r"(?<=127\.0\.0\.1:)8000": "{port}",
}
SERVICE = r"resnet-ops serve |tensorboard "
ON_CLUSTER = r"resnet-ops (?!cluster (up|template)).*(--cluster|--nodes|cluster status|jobs )"


def with_options(line: str, more: str) -> str:
    """The line with more options, before what is not its command's: a pipe, a file to write to, a comment."""
    return re.sub(r"^([^|>#]*?)( *(?:[|>#].*)?)$", rf"\1 {more}\2", line) if more else line


class Reader:
    """Someone in a folder with a page to go through, whose home, cluster and runs are their own."""

    def __init__(self, home: Path, page: Path, environment: dict[str, str]) -> None:
        self.home, self.page, self.folder = home, page, home / "here"
        self.folder.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home), "XDG_STATE_HOME": str(home / "state"),
            "WANDB_MODE": "offline", "MLFLOW_DISABLE_TELEMETRY": "true",
            **environment,
        }  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.places = {"home": str(home), "port": str(self.port), "mlflow": environment.get("MLFLOW_TRACKING_URI", "")}
        self.service: subprocess.Popen[str] | None = None
        self.cli: Callable[..., Ended] | None = None  # where that will do, and is faster

    def shell(self, line: str) -> Ended:
        """What a shell makes of a line."""
        if self.cli and line.startswith("resnet-ops ") and not re.search(r"[|>;&*~']", line):
            return self.cli(*shlex.split(line, comments=True)[1:])
        ended = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", line],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert "Traceback" not in ended.stderr, f"{line}\n{ended.stderr}"
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def must(self, line: str) -> Ended:
        """A line that has to go well."""
        ended = self.shell(line)
        assert ended.code == 0, f"{line}\n{ended.out}\n{ended.err}"
        return ended

    def cluster_up(self, line: str = "resnet-ops cluster up --nodes 4") -> None:
        """A cluster of the reader's own."""
        self.cluster_down()
        self.places |= self.must(with_options(line, "--json")).json

    def cluster_down(self) -> None:
        """The end of it, if there is one."""
        if self.places.pop("address", None):
            self.must("resnet-ops cluster down")

    def here(self, line: str) -> str:
        """The line with this machine's places in it, and made short."""
        for place, ours in PLACES.items():
            line = re.sub(place, lambda _, ours=ours: ours.format(**self.places), line)  # type: ignore[misc]
        more = next((more for what, more in SHORTER.items() if re.search(f"resnet-ops {what}", line)), "")
        return with_options(line, more)

    def type(self, told: str) -> None:
        """A line of the page."""
        if re.search(ON_CLUSTER, told) and "address" not in self.places:
            self.cluster_up()
        line = self.here(told)
        if re.search(SERVICE, line):
            self.serve(line)
            return
        if line.startswith("export "):
            self.environment |= dict(pair.split("=", 1) for pair in line.split()[1:])
        elif line.startswith("resnet-ops cluster up"):
            self.cluster_up(line)
        elif line == "resnet-ops cluster down":
            self.cluster_down()
        elif re.search(WITHOUT_GPU, line) and not torch.cuda.is_available():
            ended = self.shell(line)
            assert ended.code in (1, 2), f"{line}\n{ended.err}"
            assert "GPU" in ended.err, f"{line}\n{ended.err}"
        elif re.search(STOPPED, told) and not self.is_finished("my-run"):
            self.stop_after_an_epoch(line)
        else:
            self.must(line)
        self.stop_serving()

    def is_finished(self, name: str) -> bool:
        """Whether that run is there, and is done."""
        run = Run(self.folder / "runs" / name)
        return run.record_file.is_file() and run.read().status == "finished"

    def stop_after_an_epoch(self, line: str) -> None:
        """Ctrl-C to a training of my-run, once it has done an epoch."""
        run = Run(self.folder / "runs/my-run")
        before = len(run.epochs())
        started = self.start(line)
        wait_for(lambda: len(run.epochs()) > before)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
        assert started.returncode == 130, err
        assert "resnet-ops train --resume my-run" in err

    def start(self, line: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def serve(self, line: str) -> None:
        """What a reader would leave running in another terminal until the next line is done."""
        service = self.service = self.start(with_options(re.sub(r" --port \d+", "", line), f"--port {self.port}"))
        wait_for(lambda: service.poll() is not None or socket.socket().connect_ex(("127.0.0.1", self.port)) == 0)
        assert service.poll() is None, service.communicate()[1]

    def stop_serving(self) -> None:
        """Ctrl-C to it."""
        if self.service:
            self.service.send_signal(signal.SIGINT)
            self.service.communicate(timeout=60)
        self.service = None


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, page: Path) -> Iterator[Reader]:
    """Someone with the images, runs and files that the page takes for granted."""
    text, environment = page.read_text(), {}
    if "s3://" in text:
        request.getfixturevalue("s3")
    if "--track mlflow" in text:
        environment = {"MLFLOW_TRACKING_URI": request.getfixturevalue("mlflow").uri}
    made = Reader(tmp_path_factory.mktemp("r"), page, environment)
    prepare(made, text)
    if page == TUTORIAL:
        request.getfixturevalue("ray_session")
        made.cli = request.getfixturevalue("cli")
        request.getfixturevalue("monkeypatch").chdir(made.folder)
    try:
        yield made
    finally:
        made.stop_serving()
        made.cluster_down()


def prepare(reader: Reader, text: str) -> None:
    lines = "\n".join(typed(reader.page))
    home, here = reader.home, reader.folder
    write_files(reader.page, here)
    write_class_folders(here / "flowers", shades({"daisy": 40, "rose": 120, "tulip": 200}, 30, (12, 12)))
    for seed, split in enumerate(("train", "val")):
        write_class_folders(home / "imagenet" / split, shades({"cat": 40, "cow": 120, "dog": 200}, 30, (32, 32), seed))
    digits = open_source("digits").load("val")
    for index in range(100):
        file = home / "images" / str(digits.labels[index]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_pixels(digits.pixels[index][:, :, 0]))
    shutil.copytree(home / "images/1", here / "folder")
    (here / "photo.jpg").write_bytes(encode_pixels(digits.pixels[0].repeat(4, 0).repeat(4, 1)[:, :, 0], "JPEG"))
    pictures = shades({"cat": 40, "dog": 120}, 30, (12, 12))
    write_parquet(here / "tables/all.parquet", [*pictures["cat"], *pictures["dog"]], [0] * 30 + [1] * 30,
          columns=("picture", "kind"))  # fmt: skip
    if "s3://bucket/imagenet" in text:
        for file in (home / "imagenet").rglob("*.png"):
            boto3.client("s3").upload_file(str(file), "bucket", f"imagenet/{file.relative_to(home / 'imagenet')}")
    if "--data photos" in text:
        write_class_folders(here / "photos", shades({"cat": 40, "cow": 120, "dog": 200}, 15, (72, 72)))
    if "--weights imagenet" in text:
        torch.save(torchvision.models.resnet18().state_dict(), home / "resnet18.pth")
    if "weights.pth" in text:
        torch.save(torchvision.models.resnet50(num_classes=3).state_dict(), here / "weights.pth")
        (here / "imagenet.txt").write_text("cat\ncow\ndog\n")
    for name in ("my-run", "other-run", "my-search"):
        first = re.search(rf"(--\w+)? {name}\b", lines)
        if first and first[1] != "--name":
            reader.must(f"resnet-ops train --model resnet8 --epochs 4 --name {name}")
    if re.search(r" model\.onnx", lines):
        reader.must("resnet-ops export my-run --onnx && cp runs/my-run/export/model.onnx .")
    if "--outputs mine.csv" in lines:
        shutil.copytree(home / "images", here / "val")
        reader.must("resnet-ops predict model.onnx val --output mine.csv")


# The tutorial each time; the others take a minute or two each, and are gone through by `make test-slow`.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=() if page == TUTORIAL else pytest.mark.slow)
        for page in PAGES
        if any(typed(page))
    ],
)
def test_every_line_of_a_page_does_what_it_says(page: Path, reader: Reader) -> None:
    for line in dict.fromkeys(typed(page)):
        if not any(re.match(pattern, line) for pattern in ELSEWHERE):
            reader.type(line)
            for file in re.findall(r" (?:-o|--contact-sheet) (\S+)", line):
                assert (reader.folder / file).exists(), line
    if page == TUTORIAL:
        for figure in ("degradation.png", "norms.png"):
            assert (reader.folder / "runs/degradation-digits" / figure).stat().st_size > 10_000
