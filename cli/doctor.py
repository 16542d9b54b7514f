"""`resnet-ops doctor`: what this machine can do, and what to do about the rest."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from resnet_ops.config import TrainConfig
from resnet_ops.errors import WORK_FAILED

from .clock import importing
from .console import Output, err, table
from .options import Debug, Json, RunsDir

MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "broken": "[bold red]broken[/]"}


def doctor(
    runs_dir: Annotated[Path, RunsDir] = TrainConfig.default("runs_dir"), json: Json = False, debug: Debug = False
) -> None:
    """Examine this machine: versions, devices, Ray, NCCL, the ONNX Runtime providers that really run.

    Exits with 1 if something is broken; what is merely absent, such as a GPU, is fine.
    """
    output = Output(json)
    with importing():
        from resnet_ops.doctor import examine
    findings = []
    shown = table("", "", "")
    with err.status("Examining", spinner="dots"):
        for finding in examine(runs_dir):
            findings.append(finding)
            remedy = f"\n[bold]{escape(finding.remedy)}[/]" if finding.remedy else ""
            shown.add_row(MARKS[finding.state], finding.name, escape(finding.found) + remedy)
    broken = [finding.name for finding in findings if finding.state == "broken"]
    verdict = f"[bold red]Problems:[/] {', '.join(broken)}" if broken else "[bold green]Ready.[/]"
    output.show(shown, verdict)
    output.end({"ready": not broken, "findings": [vars(finding) for finding in findings]})
    if broken:
        raise typer.Exit(WORK_FAILED)
