"""`resnet-ops doctor`: checks this machine, and shows what works and how to mend the rest."""

import typer
from rich.markup import escape

from resnet_ops.config import RunsConfig
from resnet_ops.errors import WORK_FAILED

from .config_options import Debug, Json, Options, options_of
from .console import Output, err, table
from .startup import importing

MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "broken": "[bold red]broken[/]"}


@options_of(RunsConfig)
def doctor(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Check this machine: versions, devices, Ray, NCCL, ONNX Runtime providers.

    Exits with 1 if something is broken; something that is merely absent, such as a GPU, is fine.
    """
    runs_dir = options.make(RunsConfig).runs_dir
    output = Output(json)
    with importing():
        from resnet_ops.doctor import examine
    findings = table("", "", "")
    with err.status("Examining", spinner="dots"):
        report = examine(runs_dir)
    for finding in report.findings:
        remedy = f"\n[bold]{escape(finding.remedy)}[/]" if finding.remedy else ""
        findings.add_row(MARKS[finding.state], finding.name, escape(finding.result) + remedy)
    verdict = "[bold green]Ready.[/]" if report.ready else f"[bold red]Problems:[/] {', '.join(report.broken)}"
    output.show(findings, verdict)
    output.end(report)
    if not report.ready:
        raise typer.Exit(WORK_FAILED)
