"""A study's numbers as a Markdown table: a row a network, the paper's beside them where they can be compared."""

from resnet_ops.study.results import Findings, Row, Spread


def markdown(findings: Findings) -> str:
    """The whole of table.md."""
    data = findings.data
    settings = ", ".join(f"{name} {value}" for name, value in findings.training.items() if name != "data")
    head = ["network", "parameters", "seeds", "training error %", "validation error %"]
    shortcuts = findings.study == "shortcuts"
    if shortcuts:
        head.insert(1, "shortcuts")
    if findings.published:
        head.append("published %")
    lines = [
        f"# {findings.name}",
        "",
        findings.verdict,
        *(["", findings.gradients] if findings.gradients else []),
        "",
        f"On {data.name}, {data.train_images:,} training and {data.val_images:,} validation images of "
        f"{data.width}x{data.height}: {settings}. Errors are top-1 after the last epoch, means and sample deviations "
        "over seeds; those of training as augmented and while training.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'|'.join('---' if name in ('network', 'shortcuts') else '---:' for name in head)}|",
        *(f"| {' | '.join(_cells(row, shortcuts, bool(findings.published)))} |" for row in findings.rows),
        "",
    ]
    if findings.published:
        lines += [f"Published: {findings.published}.", ""]
    return "\n".join(lines)


def error(spread: Spread) -> str:
    """A mean in percent, with its deviation where there are seeds."""
    deviation = "" if spread.std is None else f" ± {100 * spread.std:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"


def _cells(row: Row, shortcuts: bool, published: bool) -> list[str]:
    lost = f" ({row.lost} failed)" if row.lost else ""
    cells = [row.model, f"{row.parameters:,}", f"{row.seeds}{lost}", error(row.train_error), error(row.val_error)]
    if shortcuts:
        cells.insert(1, row.shortcut or "")
    if published:
        cells.append("" if row.published_error is None else f"{100 * row.published_error:.2f}")
    return cells
