"""Make what docs/pictures holds: `make pictures`, some five minutes on 2 cores, or `make pictures ONLY=screens`.

The pages' pictures need Chromium or Chrome. Screens are what commands write without a terminal, 100 columns wide.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from resnet_ops.study import job
from resnet_ops.study.config import StudyConfig

PICTURES = Path(__file__).with_name("pictures")
COLORS = 64  # as many as such pages need, in a third of the bytes


def degradation(folder: Path) -> None:
    """Plain and residual networks on digits: what `resnet-ops study degradation` draws."""
    findings = job.study(StudyConfig.of(given={"runs_dir": str(folder)}))
    print(findings.verdict)
    for name in ("degradation.png", "norms.png"):
        (PICTURES / name).write_bytes(Path(findings.run_dir, name).read_bytes())


def screens(folder: Path) -> None:
    """The commands of the first hour, and the pages that they write."""
    _screen(folder, "data-check", "data check digits")
    _screen(folder, "train", "train --name demo")
    _screen(folder, "small", "train --name small --model resnet8 --epochs 10")
    _screen(folder, "evaluate", "evaluate demo")
    _screen(folder, "export", "export demo")
    _screen(folder, "compare", "runs compare demo small")
    _screen(folder, "tune", "tune --depths 8,14,20 --trials 6 --epochs 8 --name search")
    _screen(folder, "error", "train --data digit")
    (PICTURES / "small.txt").unlink()
    _screen(folder, "report", "report demo small -o report.html")
    (PICTURES / "report.txt").unlink()
    _photograph(folder / "report.html", "report", 1100)
    [evaluation] = folder.glob("runs/demo/evaluation-*/evaluation.html")
    _photograph(evaluation, "evaluation", 1100)
    _photograph(folder / "runs/search/tune.html", "tune", 1100)


def _screen(folder: Path, name: str, arguments: str) -> None:
    """Keep what a command writes, as `NAME.txt`."""
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "resnet_ops", *arguments.split()],
        cwd=folder,
        env=os.environ | {"COLUMNS": "100", "RESNET_OPS_RUNS_DIR": "runs"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line.rstrip() for line in ended.stdout.replace(str(folder), "/home/me").splitlines()]
    (PICTURES / f"{name}.txt").write_text("\n".join([f"$ resnet-ops {arguments}", *lines]) + "\n")


def _photograph(page: Path, name: str, height: int) -> None:
    """Keep the top of a page, as `NAME.png`."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    file = PICTURES / f"{name}.png"
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size=1100,{height}",
            f"--screenshot={file}",
        ]
        subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True)
    Image.open(file).convert("RGB").quantize(COLORS).save(file, optimize=True)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for drawn in (degradation, screens):
        if drawn.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            with tempfile.TemporaryDirectory() as folder:
                drawn(Path(folder))
