"""What the command line answers: to help, to questions, and to every kind of nonsense."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resnet_ops.cli.startup import cores_are_busy

from resnet_ops.config import TrainConfig
from resnet_ops.machine import cores
from resnet_ops.training import job
from tests.conftest import COMMAND, Ended, command
from tests.data.samples import noise, write_parquet
from tests.json_keys import assert_keys

Cli = Callable[..., Ended]


def test_help_is_complete(cli: Cli) -> None:
    top = cli("--help")
    assert top.code == 0
    for name in (
        "train",
        "tune",
        "study",
        "export",
        "validate",
        "predict",
        "diagnose",
        "bench",
        "serve",
        "recipes",
        "runs",
        "doctor",
    ):
        assert name in top.out
        text = cli(name, "--help")
        assert text.code == 0
        assert "--json" in text.out
    text = cli("train", "--help")
    for field in TrainConfig.model_fields:
        assert f"--{field.replace('_', '-')}" in text.out
    for word in ("Model and data", "Training", "Cluster", "default: auto", "A|B|C", "--resume mine"):
        assert word in text.out
    assert cli().out == top.out
    assert cli("--version").out.startswith("resnet-ops 0.")


def refused(ended: Ended, *words: str, code: int = 2) -> None:
    """One line on stderr with cause and remedy, the right code, no traceback, nothing on stdout."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == code, ended.err
    assert len(lines) == 1, ended.err
    assert ended.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in ended.err
    assert not ended.out
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "resnet21"], ["resnet21 is not a valid depth", "resnet20"]),
        (["--model", "rasnet20"], ["Unknown network 'rasnet20'", "Did you mean resnet20?"]),
        (["--model", "plain20", "--shortcut", "A"], ["plain20 is a plain network"]),
        (["--model", "resnet18"], ["at least 32x32 pixels", "8x8", "resnet20"]),
        (["--data", "digit"], ["does not exist", "Did you mean digits?"]),
        (["--data", "/nowhere/x"], ["does not exist"]),
        (["--schedule", "one-cycl"], ["--schedule", "Did you mean one-cycle?", "steps"]),
        (["--shortcut", "D"], ["--shortcut", "Valid: A, B, C"]),
        (["--device", "tpu"], ["--device", "auto, cpu, cuda"]),
        (["--epochs", "0"], ["--epochs", "greater than or equal to 1", "'0'"]),
        (["--epochs", "many"], ["--epochs many: a whole number is needed."]),
        (["--epochs", "2.5"], ["--epochs 2.5: a whole number is needed."]),
        (["--lr", "fast"], ["--lr fast: a number is needed."]),
        (["--lr", "-1"], ["--lr", "greater than 0"]),
        (["--lr", "nan"], ["--lr"]),
        (["--lr", "inf"], ["--lr", "finite"]),
        (["--momentum", "1"], ["--momentum", "less than 1"]),
        (["--seed", "-1"], ["--seed"]),
        (["--batch-size", "2000"], ["--batch-size 2000", "1,438 training images"]),
        (["--milestones", "0.75,0.5"], ["--milestones", "increasing fractions", "1/3,2/3"]),
        (["--milestones", "1/0"], ["--milestones", "increasing fractions"]),
        (["--warmup-steps", "5"], ["the one-cycle schedule includes its own warm-up", "--schedule steps"]),
        (["--schedule", "cosine", "--warmup-steps", "360"], ["360 steps (30 epochs of 12)", "Use --warmup-ratio 0.05"]),
        (["--checkpoint-every", "500"], ["--checkpoint-every 500", "360 steps"]),
        (["--nesterov", "--momentum", "0"], ["--nesterov needs a momentum"]),
        (["--accumulate", "200"], ["--accumulate 200", "128"]),
        (["--ema", "1"], ["--ema", "less than 1"]),
        (["--cutout", "9"], ["--cutout 9", "8 pixels"]),
        (["--compile", "max"], ["--compile", "max-autotune"]),
        (["--model", "plain20", "--zero-init-residual"], ["plain20 has no residual branches"]),
        (["--recipe", "fsat"], ["Unknown recipe 'fsat'", "Did you mean fast?", "torchvision"]),
        (["--crop-padding", "9"], ["--crop-padding 9", "8 pixels"]),
        (["--name", "../escape"], ["--name", "'../escape'"]),
        (["--name", ""], ["--name"]),
        (["--name", "a b"], ["--name"]),
        (["--workers-per-node", "4096"], ["--workers-per-node 4096", "this machine has"]),
        (["--runs-dir", "/proc/nope"], ["cannot be written", "--runs-dir"]),
        (["--resume", "never"], ["no run called 'never'"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["surplus"], ["surplus"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_gets_one_line_and_leaves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli("train", *options), *words)
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_cuda_where_there_is_none(cli: Cli) -> None:
    refused(cli("train", "--device", "cuda"), "no usable CUDA GPU here", "resnet-ops doctor")


def test_data_that_cannot_be_trained_on(cli: Cli, tmp_path: Path) -> None:
    def train(file: Path) -> Ended:
        return cli("train", "--data", file, "--runs-dir", tmp_path / "runs", "--batch-size", 2)

    refused(train(write_parquet(tmp_path / "empty.parquet", noise(0), [])), "no training images")
    refused(train(write_parquet(tmp_path / "one.parquet", noise(9), [0] * 9)), "one class only")
    refused(train(write_parquet(tmp_path / "tiny.parquet", noise(20, side=3), [0, 1] * 10)), "at least 4x4 pixels")
    (tmp_path / "unreadable.parquet").write_bytes(b"PAR1 and then nothing")
    refused(train(tmp_path / "unreadable.parquet"), "cannot be read as Parquet")
    assert not (tmp_path / "runs").exists()


def test_errors_come_as_json_too(cli: Cli) -> None:
    ended = cli("train", "--lr", "-1", "--json")
    assert ended.code == 2
    assert ended.json["status"] == "error"
    assert ended.json["exit_code"] == 2
    assert "--lr" in ended.json["error"]


def test_debug_shows_the_traceback(cli: Cli) -> None:
    assert "Traceback" in cli("train", "--lr", "-1", "--debug").err


@pytest.mark.parametrize(("lr", "reached"), [(1e3, True), (1e12, False)])
def test_divergence_names_the_epoch_and_the_last_good_checkpoint(
    cli: Cli, tmp_path: Path, lr: float, reached: bool
) -> None:
    ended = cli("train", "--model", "plain8", "--epochs", 60, "--lr", lr, "--runs-dir", tmp_path, "--name", "d")
    refused(ended, "Training diverged in epoch", "Try a smaller --lr", code=1)
    record = json.loads((tmp_path / "d" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "diverged" in record["reason"]
    saved = sorted((tmp_path / "d" / "checkpoints").iterdir())
    assert bool(saved) == reached
    assert (f"Last intact checkpoint: {saved[-1]}" if reached else "No checkpoint has been saved") in ended.err


def test_a_run_goes_on_as_it_began(cli: Cli, trained: job.TrainResult) -> None:
    runs_dir = trained.run.path.parent
    refused(cli("train", "--resume", "trained", "--lr", 0.2, "--runs-dir", runs_dir), "--lr cannot be changed")
    refused(cli("train", "--name", "trained", "--runs-dir", runs_dir), "--resume trained", "--overwrite")


def test_runs_lists_what_is_there(cli: Cli, trained: job.TrainResult, tmp_path: Path) -> None:
    shutil.copytree(trained.run.path, tmp_path / "one")
    best = trained.record.best.val_accuracy  # type: ignore[union-attr]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    ended = cli("runs", "--runs-dir", tmp_path)
    assert ended.code == 0
    row = next(line for line in ended.out.splitlines() if line.startswith("one"))
    for word in ("resnet8", "digits", "finished", "6/6", f"{100 * best:.2f}"):
        assert word in row
    assert "damaged" in ended.err
    (summary,) = cli("runs", "--runs-dir", tmp_path, "--json").json["runs"]
    assert summary["best_val_accuracy"] == best
    assert "No runs in" in cli("runs", "--runs-dir", tmp_path / "nothing").out


def test_bad_requests_for_an_export(cli: Cli, trained: job.TrainResult) -> None:
    refused(cli("export", "never", "--onnx", "--runs-dir", trained.run.path.parent), "Available: trained")
    refused(cli("export", "trained", "--onnx", "--opset", 12), "--opset", "13")


def test_a_reader_that_leaves_early_is_no_traceback(trained: job.TrainResult) -> None:
    process = subprocess.Popen(
        [*COMMAND, "runs", "--runs-dir", trained.run.path.parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()  # as `resnet-ops runs | true` does
    _, err = process.communicate()
    assert b"Traceback" not in err
    assert b"Exception" not in err


def spin_count(code: str, **environment: str) -> str:
    """Return the setting of libgomp that `code` has made in a process."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    code = f"import os, time; from resnet_ops.cli import startup; {code}; print(os.environ.get('GOMP_SPINCOUNT'))"
    return subprocess.check_output([sys.executable, "-c", code], text=True, env=rest | environment).strip()


def test_threads_do_not_spin_where_others_need_the_cores() -> None:
    """Two trainings on digits that spin have a twentieth of their speed each."""
    code = "began = startup.cpu_times(); time.sleep(0.4); startup.yield_cores(began)"
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
    try:
        assert spin_count(code) == "1000"
        assert spin_count(code, GOMP_SPINCOUNT="7") == "7"
        assert spin_count(code, OMP_WAIT_POLICY="active") == "None"
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_threads_spin_where_nobody_else_is() -> None:
    """Asleep they would cost a sixth; of 4 seconds of cores, nobody else has had more than one."""
    began = (10.0, 1.0, 100.0)
    assert not cores_are_busy(began, (12.5, 1.5, 102.0), cores=2)
    assert not cores_are_busy(began, (10.0, 5.0, 102.0), cores=2)
    assert cores_are_busy(began, (11.0, 2.0, 102.0), cores=2)
    assert not cores_are_busy((None, 1.0, 100.0), (None, 2.0, 102.0), cores=2)
    machine = "startup.cores = lambda: 2; startup.cpu_times = lambda: (12.5, 1.5, 102.0)"
    assert spin_count(f"{machine}; startup.yield_cores((10.0, 1.0, 100.0))") == "None"


def test_sentences_break_between_words_on_a_terminal_and_nowhere_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{}")
    runs = ("runs", "--runs-dir", tmp_path)
    (piped,) = command(*runs).stderr.splitlines()
    ours, theirs = pty.openpty()
    subprocess.run(
        [*COMMAND, *map(str, runs)], stderr=theirs, env=os.environ | {"COLUMNS": "50", "TERM": "xterm"}, check=True
    )
    os.close(theirs)
    terminal = re.sub(r"\x1b\[[0-9;]*m", "", os.read(ours, 65536).decode())
    os.close(ours)
    lines = terminal.splitlines()
    assert len(lines) > 1
    assert " ".join(lines) == piped
    assert all(len(line) <= 50 or " " not in line for line in lines)


def test_doctor_examines_by_doing(tmp_path: Path) -> None:
    ended = command("doctor", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert_keys("doctor", json.loads(line))
    findings = {finding["name"]: finding for finding in json.loads(line)["findings"]}
    assert findings["Ray"]["state"] == "ok"
    assert "ran a task" in findings["Ray"]["found"]
    assert findings["CPUExecutionProvider"]["state"] == "ok"
    assert findings["CUDAExecutionProvider"]["state"] in ("ok", "absent")
    assert findings["GPU"]["state"] in ("ok", "absent")


def test_doctor_says_what_is_broken_and_what_to_do(tmp_path: Path) -> None:
    from resnet_ops.doctor import _disk

    assert _disk(tmp_path / "a" / "b").state == "ok"
    (tmp_path / "file").touch()
    finding = _disk(Path("/proc/nope"))
    assert finding.state == "broken"
    assert "--runs-dir" in finding.remedy


@pytest.mark.skipif(sys.platform != "linux", reason="ONNX Runtime's CUDA libraries are installed on Linux only")
def test_all_cuda_libraries_come_with_the_installation() -> None:
    """Without onnxruntime-gpu's extras libcurand is missing, and its CUDA provider silently is the CPU."""
    code = "from resnet_ops.export.runtime import missing_cuda_libraries as m; print(sorted(m()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found in ("[]", "['libcuda.so.1']")  # the driver's own is there where a GPU is
