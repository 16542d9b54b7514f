"""Make the pictures in docs/pictures: `make pictures`, some three minutes on 2 cores."""

import tempfile
from pathlib import Path

from resnet_ops.study import job
from resnet_ops.study.config import StudyConfig

PICTURES = Path(__file__).with_name("pictures")


def degradation() -> None:
    """Plain and residual networks on digits: what `resnet-ops study degradation` draws."""
    with tempfile.TemporaryDirectory() as folder:
        findings = job.study(StudyConfig.of(given={"runs_dir": folder}))
        print(findings.verdict)
        PICTURES.mkdir(exist_ok=True)
        for name in ("degradation.png", "norms.png"):
            (PICTURES / name).write_bytes(Path(findings.run_dir, name).read_bytes())


if __name__ == "__main__":
    degradation()
