"""A study's numbers as a Markdown table: a row a network, the paper's beside them where they can be compared."""

from resnet_ops.study.results import Spread, StudyResult, StudyRow


def markdown(findings: StudyResult) -> str:
    """The whole of table.md."""
    data = findings.data
    settings = ", ".join(f"{name} {value}" for name, value in findings.training.items() if name != "data")
    heads = columns(findings)
    lines = [
        f"# {findings.name}",
        "",
        findings.verdict,
        *(["", findings.gradients] if findings.gradients else []),
        "",
        f"On {data.name}, {data.train_images:,} training and {data.val_images:,} validation images of "
        f"{data.width}x{data.height}: {settings}. Top-1 errors after the last epoch, mean ± sample standard deviation "
        "over seeds; training errors are measured on augmented images during the epoch.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'|'.join('---' if name in ('network', 'shortcuts') else '---:' for name in heads)}|",
        *(f"| {' | '.join(cells(findings, row))} |" for row in findings.rows),
        "",
    ]
    if findings.published:
        lines += [f"Published: {findings.published}.", ""]
    return "\n".join(lines)


def columns(findings: StudyResult) -> list[str]:
    """What the table has of each network."""
    shortcuts = ["shortcuts"] if findings.study == "shortcuts" else []
    published = ["published (%)"] if findings.published else []
    return ["network", *shortcuts, "parameters", "seeds", "training error (%)", "validation error (%)", *published]


def cells(findings: StudyResult, row: StudyRow) -> list[str]:
    """The same of one network."""
    lost = f" ({row.lost} failed)" if row.lost else ""
    published = "" if row.published_error is None else f"{100 * row.published_error:.2f}"
    every = {
        "network": row.model,
        "shortcuts": row.shortcut or "",
        "parameters": f"{row.parameters:,}",
        "seeds": f"{row.seeds}{lost}",
        "training error (%)": _error(row.train_error),
        "validation error (%)": _error(row.val_error),
        "published (%)": published,
    }
    return [every[name] for name in columns(findings)]


def _error(spread: Spread) -> str:
    """A mean in percent, with its deviation where there are seeds."""
    deviation = "" if spread.std is None else f" ± {100 * spread.std:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"
