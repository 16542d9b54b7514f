"""Machines as they come: folders that move, odd names, TMPDIR, RAY_ADDRESS, quotas, homes, modules of strangers."""

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from ray.core.generated.common_pb2 import JobConfig

from resnet_ops import environment, files, machine, runs
from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data.cache import cache_folder
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.job import evaluate
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import ExportConfig, ValidateConfig
from resnet_ops.export.job import export_onnx
from resnet_ops.export.validate import validate_onnx
from resnet_ops.orchestration import connect, ray_internals
from resnet_ops.recipes.reading import read_recipe
from resnet_ops.training import job
from resnet_ops.tuning.algorithms import NUMBER, POINT
from resnet_ops.tuning.space import read_space_file
from resnet_ops.tuning.trial import TrialTask, TrialWorker
from resnet_ops.weights.class_files import read_class_names
from tests.conftest import COMMAND, DigitFiles, Ended

STRANGERS = ("numpy", "onnxruntime", "inspect", "platform", "resource", "typer", "pydantic", "PIL", "multiprocessing")
UNIX_SOCKET = 108  # bytes of sun_path in sys/un.h, with the zero at the end
Cli = Callable[..., Ended]


def make_folders(root: Path, *classes: str, count: int = 10) -> Path:
    random = np.random.default_rng(len(str(root)))
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            with (folder / f"{number}.png").open("wb") as file:  # Pillow itself takes no name that is not UTF-8
                Image.fromarray(pixels).save(file, "PNG")
    return root


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download with modules of strangers in it, that we stand in."""
    folder = tmp_path / "download"
    folder.mkdir()
    for name in STRANGERS:
        (folder / f"{name}.py").write_text("raise SystemExit('ran a stranger')")
    monkeypatch.chdir(folder)
    return folder


# 8. A folder's own modules


def test_c27_predict_runs_no_module_of_the_current_folder(download: Path, digit_files: DigitFiles) -> None:
    assert Classifier(digit_files.normalized).metadata.model == "resnet8"


def test_c27_nor_where_pythonpath_has_an_empty_part(
    download: Path, digit_files: DigitFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep + "/nowhere")
    assert Classifier(digit_files.normalized).metadata.model == "resnet8"


@pytest.mark.parametrize("python_path", [None, ":/nowhere", ".:/nowhere", "/nowhere:"])
@pytest.mark.parametrize("start", [COMMAND, [sys.executable, "-m", "resnet_ops"]], ids=["script", "module"])
def test_c27_no_start_of_the_command_does(download: Path, start: list[str], python_path: str | None) -> None:
    if python_path:  # which Python itself imports from before it comes to us
        for name in ("inspect", "platform", "resource", "multiprocessing"):
            (download / f"{name}.py").unlink()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {"PYTHONPATH": python_path} if python_path else {}
    ended = subprocess.run([*start, "--version"], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("resnet-ops ")


def test_c27_servers_of_processes_that_the_library_starts_do_not(
    download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with environment.safe_path():  # as forkserver and resource_tracker are started
        subprocess.run([sys.executable, "-c", "import multiprocessing"], check=True)
    assert "PYTHONSAFEPATH" not in os.environ


def test_c50_ray_workers_import_from_where_the_driver_does(download: Path) -> None:
    config = ray_internals.job_config_of_driver()
    config._py_driver_sys_path.extend([sys.path[-1], str(download)])  # as ray.init does
    assert JobConfig.FromString(config._serialize()).py_driver_sys_path == [sys.path[-1]]


# 7. The environment


@pytest.mark.parametrize("asked", ["long", "missing", "with blanks", "relative"])
def test_c17_c49_sockets_of_ray_have_a_path_that_is_short_enough(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = Path(tempfile.mkdtemp(prefix="a b", dir="/tmp"))
    relative = os.path.relpath(blank, Path.cwd())
    folders = {"long": tmp_path / ("x" * 60), "missing": tmp_path / "no", "with blanks": blank, "relative": relative}
    folders["long"].mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folders[asked]))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with connect._temporary_folder() as folder:
        socket = f"{folder}/r/session_2026-01-31_12-00-00_123456_4194304/sockets/plasma_store"
        assert len(os.fsencode(socket)) < UNIX_SOCKET
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.is_relative_to(blank) == (asked in ("with blanks", "relative"))
    assert not folder.exists()
    blank.rmdir()


def test_c17_a_folder_chosen_for_ray_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 40)
    with pytest.raises(UserError, match=r"RAY_TMPDIR.*too long.*24 bytes, such as RAY_TMPDIR=/tmp"):
        connect._temporary_folder().__enter__()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (
            "http://127.0.0.1:8265",
            "RAY_ADDRESS is http://127.0.0.1:8265, a job server.*--cluster http://127.0.0.1:8265",
        ),
        ("https://head", "RAY_ADDRESS is https://head, a job server.*--cluster local, or unset RAY_ADDRESS"),
        ("http://me:secret@head:8265", "RAY_ADDRESS is http://head:8265, a job server"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported.*--cluster http://HEAD:8265"),
    ],
)
def test_c19_an_address_of_another_server_is_told(address: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    for ask in (lambda: connect.cluster_address(TrainConfig.of()), lambda: connect.resolve_address(connect.AUTO)):
        with pytest.raises(UserError, match=told) as refused:
            ask()
        assert "secret" not in str(refused.value)
    assert connect.cluster_address(TrainConfig.of(cluster="local")) == connect.LOCAL


def test_c19_what_is_no_address_is_said_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(UserError, match="RAY_ADDRESS is nonsense, which is not an address"):
        connect.resolve_address(connect.AUTO)
    for none in ("", " ", "local"):
        monkeypatch.setenv("RAY_ADDRESS", none)
        assert connect.cluster_address(TrainConfig.of()) == connect.LOCAL


def nobody(_: int) -> pwd.struct_passwd:
    raise KeyError("uid not found")


def test_c20_a_user_without_home_and_name_has_a_folder_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import getpass

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    homes = []
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("LOGNAME", "")
    for _ in range(2):
        for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        notes: list[str] = []
        environment.prepare(notes.append)
        homes.append(Path.home())
        assert str(Path.home()) in notes[0]
        assert getpass.getuser() == f"user-{os.getuid()}"
    assert homes[0] == homes[1]
    assert homes[0].stat().st_mode & 0o777 == 0o700


def test_c20_a_folder_that_another_user_has_made_is_not_taken_for_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"resnet-ops-{os.getuid()}").symlink_to("/")
    assert environment._own_folder() not in (str(tmp_path / f"resnet-ops-{os.getuid()}"), "/")


def test_c20_a_home_that_cannot_be_written_is_one_line_with_the_remedy(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    ended = cli("cluster", "up", "--nodes", 1)
    assert ended.code == 2
    assert "Set XDG_STATE_HOME, or HOME" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_c20_a_cache_that_cannot_be_written_names_its_option(tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", "cat", "dog")
    source = open_source(DataConfig(data=str(data), cache_dir=Path("/proc/nohome/cache")))
    with pytest.raises(UserError, match=r"Cannot write decoded images to /proc/nohome/cache.*--cache-dir"):
        source.prepare()


def test_the_cache_is_where_the_desktop_has_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNET_OPS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/caches")
    assert cache_folder(None) == Path("/scratch/caches/resnet-ops")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder(None) == Path.home() / ".cache/resnet-ops"


def test_a_folder_that_is_gone_is_told(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL ends a process that begins there without a word."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ended = cli("runs", "--runs-dir", tmp_path)
    assert (ended.code, "The current folder no longer exists. Change to another one" in ended.err) == (1, True)


def test_c37_a_cache_of_another_user_is_read_without_his_locks(tmp_path: Path) -> None:
    data, cache = make_folders(tmp_path / "data", "cat", "dog"), tmp_path / "cache"
    config = DataConfig(data=str(data), cache_dir=cache)
    before = os.umask(0o022)
    open_source(config).prepare()
    os.umask(before)
    kept = [path for path in (cache / "images").rglob("*") if path.suffix != ".lock"]
    assert {path.stat().st_mode & 0o777 for path in kept if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in kept if path.is_file()} == {0o644}
    for lock in (cache / "images").glob("*.lock"):  # not even root can open one now
        lock.unlink()
        lock.mkdir()
    assert open_source(config).prepare().record.train_images == 16


def control_group(root: Path, line: str, **contents: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line)
    (root / "proc/meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable: 8388608 kB\n")
    for path, content in contents.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("line", "contents", "expected"),
    [
        ("0::/q\n", {"q/cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "60000 100000\n"}, 1),
        ("0::/docker/unseen\n", {"cpu.max": "100000 100000\n"}, 1),  # the host's path, in a container
        (
            "4:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "9000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "10000\n"},
            1,
        ),
        ("0::/q\n", {"q/cpu.max": "max 100000\n"}, None),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/q\n", {"q/cpu.max": "99900000 100000\n"}, None),  # more than there are
    ],
)
def test_c40_the_quota_of_a_container_counts(
    line: str, contents: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    assert machine.cores(control_group(tmp_path, line, **contents)) == (expected or len(os.sched_getaffinity(0)))


GIB = 2**30


@pytest.mark.parametrize(
    ("line", "contents", "limit", "free"),
    [
        ("0::/m\n", {"m/memory.max": f"{GIB}\n", "m/memory.current": "24\n"}, GIB, GIB - 24),
        (
            "0::/slurm/job_1/step_0\n",
            {
                "slurm/job_1/memory.max": f"{GIB}\n",
                "slurm/job_1/memory.current": "1000\n",
                "slurm/job_1/step_0/memory.max": "max\n",
                "slurm/job_1/step_0/memory.current": "9\n",
            },
            GIB,
            GIB - 1000,
        ),
        ("0::/h\n", {"h/memory.max": "max\n", "h/memory.high": f"{GIB}\n", "h/memory.current": "0\n"}, GIB, GIB),
        (
            "8:memory:/slurm/uid_1\n0::/\n",
            {"memory/slurm/memory.limit_in_bytes": f"{GIB}\n", "memory/slurm/memory.usage_in_bytes": "7\n"},
            GIB,
            GIB - 7,
        ),
        ("0::/m\n", {"m/memory.max": "max\n", "m/memory.current": "5\n"}, None, 8 * GIB),
    ],
)
def test_c41_the_limit_of_a_job_counts_though_it_is_above(
    line: str, contents: dict[str, str], limit: int | None, free: int, tmp_path: Path
) -> None:
    root = control_group(tmp_path, line, **contents)
    assert machine.memory_bytes(root) == (limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    assert machine.free_memory_bytes(root) == free


@pytest.mark.parametrize("listed", ["", "example.org", "localhost, example.org"])
def test_no_proxy_is_asked_for_this_machine(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", listed)
    monkeypatch.setenv("NO_PROXY", listed)
    environment.reach_loopback_directly()
    for host in ("127.0.0.1:8265", "localhost:8000", *([] if not listed else ["example.org"])):
        assert requests.utils.should_bypass_proxies(f"http://{host}", None)
        assert urllib.request.proxy_bypass(host)
    assert not requests.utils.should_bypass_proxies("http://head:8265", None)


def test_no_proxy_is_left_alone_where_there_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.PROXIES, *map(str.upper, environment.PROXIES), "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    environment.reach_loopback_directly()
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize("hard", [4 * GIB, 64 * GIB])
def test_a_limit_of_memory_is_lowered_and_never_raised(hard: int) -> None:
    code = f"""
import os, resource
from resnet_ops.export.sandbox import _limit
resource.setrlimit(resource.RLIMIT_AS, ({2 * GIB}, {hard}))
if os.getuid() == 0:
    os.setuid(65534)  # who may not raise it
_limit(resource.RLIMIT_AS, {16 * GIB})
print(*resource.getrlimit(resource.RLIMIT_AS))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [*map(int, ended.stdout.split())] == [2 * GIB, min(hard, 16 * GIB)]
    assert resource.RLIM_INFINITY not in (hard, 16 * GIB)


def test_a_current_folder_that_is_gone_is_one_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ended = cli("runs")
    assert (ended.code, ended.err) == (1, "error: The current folder no longer exists. Change to another one: cd ~\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/opt/x"), "/opt/x: Permission denied. Give this user access to it"),
        (OSError(24, "Too many open files"), "Too many open files. Allow more open files: ulimit -n"),
        (OSError(28, "No space left on device", "/var/x"), "/var/x: No space left on device. Free some space"),
        (OSError(36, "File name too long", "x" * 300), "File name too long. Use a shorter name."),
        (MemoryError(), "There is not enough memory. Use smaller images or batches"),
        (ImportError("libcuda.so: failed to map segment"), "failed to map segment. Install it again; where"),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "No usable temporary directory found",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_machine_lacks_is_one_line_with_the_remedy(
    error: Exception, line: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_: object) -> None:
        raise error

    monkeypatch.setattr(environment, "prepare", lacks)
    ended = cli("runs")
    assert ended.code == 1
    assert line in ended.err
    assert "Internal error" not in ended.err
    assert len(ended.err.splitlines()) == 1


# 6. Paths that change


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, job.TrainResult]:
    """The folder of images, and a run of one epoch on them, before they moved."""
    folder = tmp_path_factory.mktemp("job1")
    data = make_folders(folder / "images", "cat", "dog")
    config = TrainConfig.of(data=str(data), model="resnet8", epochs=1, runs_dir=folder / "runs", name="moving", seed=3)
    return data, job.train(config)


def test_c04_c05_images_that_have_moved(moving: tuple[Path, job.TrainResult], tmp_path: Path) -> None:
    data, trained = moving
    elsewhere = tmp_path / "job2"
    shutil.move(data, elsewhere)
    runs_dir = trained.run.path.parent
    with pytest.raises(UserError, match=r"no longer in .*images.* --data FOLDER"):
        job.resume(runs_dir, "moving", changes={"epochs": 2})
    others = make_folders(tmp_path / "others", "cat", "dog", count=11)
    with pytest.raises(UserError, match="others differ from those moving was trained on"):
        job.resume(runs_dir, "moving", changes={"data": str(others), "epochs": 2})
    resumed = job.resume(runs_dir, "moving", changes={"data": str(elsewhere), "epochs": 2})
    assert resumed.epochs == 2
    assert resumed.record.config.data == str(elsewhere)
    assert resumed.record.data.fingerprint == trained.record.data.fingerprint

    shutil.move(elsewhere, tmp_path / "job3")
    with pytest.raises(UserError, match=r"not in .*job2. Give their folder"):
        evaluate(EvaluateConfig.of(run="moving", runs_dir=runs_dir))
    evaluated = evaluate(EvaluateConfig.of(run="moving", runs_dir=runs_dir, data=str(tmp_path / "job3")))
    assert evaluated.is_own_data
    assert evaluated.seen == "these images chose the epoch"
    assert evaluated.top1 == resumed.best.val_accuracy

    notes: list[str] = []
    exported = export_onnx(ExportConfig(run="moving", runs_dir=runs_dir), notes.append)
    assert exported.validated
    assert np.isnan(exported.val_accuracy_torch)
    assert "random pixels" in " ".join(notes)
    notes.clear()
    assert validate_onnx(ValidateConfig(file=exported.onnx), notes.append).validated
    assert "random pixels" in " ".join(notes)
    with pytest.raises(UserError, match="int8 quantization needs images"):
        export_onnx(ExportConfig(run="moving", runs_dir=runs_dir, precision="int8"))


def test_c04_images_of_a_search_that_have_moved(tmp_path: Path) -> None:
    data = make_folders(tmp_path / "job1", "cat", "dog")

    def worker() -> TrialWorker:
        options = {"epochs": 3, "model": "resnet8", "data": str(data)}
        task = TrialTask(str(tmp_path / "trials"), options, open_source(str(data)).record, "cpu", threads=1, nodes=1)

        class Worker(TrialWorker):
            def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
                super().setup(config, task)

        return Worker({POINT: {NUMBER: 1}})

    stopped = worker()
    assert not stopped.step()["done"]
    stopped.cleanup()
    data = data.rename(tmp_path / "job2")
    resumed = worker()
    assert [resumed.step()["done"] for _ in range(3)] == [False, False, True]
    resumed.cleanup()


def test_c21_names_that_are_not_utf8_are_kept_written_out(cli: Cli, tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", "dog", os.fsdecode(b"caf\xe9"), count=30)
    (Path(data, "dog", "0.png")).rename(os.fsdecode(bytes(data) + b"/dog/\xff.png"))
    os.truncate(os.fsdecode(bytes(data) + b"/dog/\xff.png"), 40)
    options = ("--model", "resnet8", "--epochs", 1, "--runs-dir", tmp_path, "--name", "mine", "--json")
    trained = cli("train", "--data", data, *options)
    assert trained.code == 0, trained.err
    assert "/dog/\\xff.png" in trained.err
    record = json.loads((tmp_path / "mine" / "run.json").read_text())["data"]
    assert record["class_names"] == ["caf\\xe9", "dog"]
    assert record["first_bad_images"][0]["name"].endswith("/dog/\\xff.png")
    checked = cli("data", "check", data, "--json")
    assert checked.json["class_names"] == ["caf\\xe9", "dog"]


@pytest.mark.parametrize("option", ["--data", "--runs-dir", "--cache-dir"])
def test_c21_a_path_that_cannot_be_recorded_is_refused_at_once(cli: Cli, option: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    ended = cli("train", option, folder, "--epochs", 1, *(["--runs-dir", tmp_path] if option != "--runs-dir" else []))
    assert ended.code == 2
    assert "caf\\xe9 is not UTF-8" in ended.err
    assert "convmv" in ended.err


@pytest.mark.parametrize("name", ["c29 [v2]", "[v2]", "photos *", "what?", "{a}", "a'b", "100%", "-x", "$HOME"])
def test_c29_a_folder_that_exists_is_no_pattern(name: str, tmp_path: Path) -> None:
    data = make_folders(tmp_path / name, "cat", "dog")
    assert open_source(str(data)).record.train_images == 16


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_of_either_form_are_one_class(form: str, tmp_path: Path) -> None:
    for split, own in (("train", form), ("val", "NFD" if form == "NFC" else "NFC")):
        make_folders(tmp_path / split, unicodedata.normalize(own, "Käse"), "Brot")
    record = open_source(str(tmp_path)).record
    assert record.class_names == ("Brot", unicodedata.normalize("NFC", "Käse"))
    assert record.val_images == 20


@pytest.mark.parametrize("length", [91, 120, 255])
def test_a_very_long_folder_name_makes_a_run_name_that_can_be_read(length: int, tmp_path: Path) -> None:
    data = make_folders(tmp_path / ("m" * length), "cat", "dog")
    record = open_source(str(data)).record
    run = runs.create(tmp_path / "runs", None, f"resnet110-{record.name}", overwrite=False)
    assert TrainConfig.of(name=run.name).name == run.name


CLASSES = {
    "BOM": "﻿cat\ndog\n".encode(),
    "UTF-16": "cat\r\ndog\r\n".encode("utf-16"),
    "CRLF": b"cat\r\ndog\r\n",
    "list": b'["cat", "dog"]',
    "imagenet_class_index": b'{"0": ["n01", "cat"], "1": ["n02", "dog"]}',
    "disordered": b'{"1": "dog", "0": "cat"}',
    "class_to_idx": b'{"dog": 1, "cat": 0}',
    "config.json": b'{"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}',
    "JSON with BOM": b'\xef\xbb\xbf["cat", "dog"]',
}


@pytest.mark.parametrize("form", CLASSES)
def test_classes_of_any_editor_and_library_are_read(form: str, tmp_path: Path) -> None:
    file = tmp_path / "classes"
    file.write_bytes(CLASSES[form])
    assert read_class_names(file) == ("cat", "dog")


def test_classes_of_one_name_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text('{"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}')
    assert read_class_names(file) == ("n02012849", "n03126707")


@pytest.mark.parametrize("content", [b'{"cat": "dog"}', b"[1, 2]", b"{", b"caf\xe9\n", b'{"0": "cat", "2": "dog"}'])
def test_classes_of_another_form_are_refused_with_the_forms(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "classes"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read.*one class per line.*JSON"):
        read_class_names(file)


REFUSED_CLASSES = {
    "an empty line": (b"cat\n\ndog\n", "class 2 of 3 has no name"),
    "an empty name": (b'["cat", " "]', "class 2 of 2 has no name"),
    "a name of two classes": (b"crane\ncat\ncrane\n", "classes 1 and 3 are both called 'crane'"),
    "a separator": ("cat\u2028dog\nmouse\n".encode(), r"class 1, 'cat\\u2028dog', has characters that separate lines"),
    "a form feed": (b"cat\x0cdog\nmouse\n", r"class 1, 'cat\\x0cdog', has"),
    "two lines in a name": (b'["cat\\ndog", "mouse"]', r"class 1, 'cat\\ndog', has"),
    "text turned around": ('["cat\u202egod", "mouse"]'.encode(), r"class 1, 'cat\\u202egod', has"),
    "a number twice": (b'{"cat": 0, "dog": 0, "mouse": 1}', "cannot be read: 0 is there twice"),
    "a number in two forms": (b'{"0": "cat", "00": "dog", "1": "mouse"}', "cannot be read: 0 is there twice"),
    "a key twice": (b'{"0": "cat", "0": "dog"}', "cannot be read: 0 is there twice"),
    "numbers as names": (b'{"0": 1, "1": 2, "2": 0}', "which side is the numbers of the classes"),
    "numbers in text as names": (b'{"0": "1", "1": "2", "2": "0"}', "which side is the numbers of the classes"),
    "truth for numbers": (b'{"cat": false, "dog": true}', "cannot be read"),
    "lists of nothing": (b"[[], []]", "cannot be read"),
    "too deep": (b"[" * 100_000, "cannot be read"),
}


@pytest.mark.parametrize("form", REFUSED_CLASSES)
def test_every_class_has_one_name_of_its_own(form: str, tmp_path: Path) -> None:
    """Or the names after it would be those of other classes."""
    content, cause = REFUSED_CLASSES[form]
    file = tmp_path / "classes"
    file.write_bytes(content)
    with pytest.raises(UserError, match=cause) as refused:
        read_class_names(file)
    assert str(refused.value).isprintable()


def test_recipes_and_search_spaces_may_begin_with_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbfepochs = 3\n")
    assert read_recipe(str(file)) == {"epochs": 3}
    assert read_space_file(file) == {"epochs": 3}


# 10. Early refusals


@pytest.mark.parametrize("command", ["train", "tune", "study"])
def test_a_taken_name_is_told_before_images_are_looked_for(command: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
    ended = cli(command, *(["shortcuts"] if command == "study" else []), "--data", "/nowhere", "--name", "taken",
                "--runs-dir", tmp_path)  # fmt: skip
    assert ended.code == 2
    assert "Run taken exists already" in ended.err


def test_a_run_that_is_being_trained_is_told_before_it_is_replaced(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
    with runs.Run(tmp_path / "taken").lock():
        ended = cli("train", "--data", "/nowhere", "--name", "taken", "--overwrite", "--runs-dir", tmp_path)
    assert "Run taken is being trained by another process" in ended.err


@pytest.mark.parametrize("runs_dir", ["/proc/runs", "/proc/self/status", "/dev/null/runs"])
def test_a_runs_folder_that_cannot_be_written_is_told_first(runs_dir: str, cli: Cli) -> None:
    ended = cli("train", "--data", "/nowhere", "--runs-dir", runs_dir)
    assert ended.code == 2
    assert "--runs-dir" in ended.err
    assert "/nowhere" not in ended.err


def test_a_folder_that_cannot_be_written_is_told_before_an_export_or_an_evaluation(trained: job.TrainResult) -> None:
    where = {"run": "trained", "runs_dir": trained.run.path.parent}
    with pytest.raises(UserError, match="/proc cannot be written to"):
        export_onnx(ExportConfig(**where, out=Path("/proc/x.onnx")))
    with pytest.raises(UserError, match="/proc cannot be written to"):
        evaluate(EvaluateConfig.of(**where, output=Path("/proc/x")))
    with pytest.raises(UserError, match="is a file"):
        files.check_writable(Path("/etc/hostname/x"))
