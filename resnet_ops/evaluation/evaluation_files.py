"""The folder of an evaluation: evaluation.json, evaluation.md, evaluation.html and predictions.csv.

What they hold is measured in evaluation_metrics.py; how pages look is in `resnet_ops.reporting`.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.metrics import confusion_matrix

from resnet_ops.data.decode import decode
from resnet_ops.evaluation.classification import ClassifiedImages
from resnet_ops.evaluation.evaluated_network import EvaluatedNetwork
from resnet_ops.evaluation.evaluation_figures import recall_of_classes
from resnet_ops.evaluation.label_issues import find_label_issues, label_margins, most_confident_errors
from resnet_ops.evaluation.labeled_images import LabeledSplit
from resnet_ops.evaluation.results import ClassificationError, Confusion, EvaluatedClass, EvaluateResult
from resnet_ops.formatting import percent
from resnet_ops.reporting import page, style
from resnet_ops.reporting.predictions import Thumbnail, thumbnail
from resnet_ops.reporting.reliability_figure import reliability
from resnet_ops.reporting.training_figures import confusion

JSON, MARKDOWN, PAGE, PREDICTIONS = "evaluation.json", "evaluation.md", "evaluation.html", "predictions.csv"
MATRIX_CLASSES = 1000  # up to which the confusion matrix is drawn
SUSPECTS_DRAWN = 100  # at most, on the page; all are in the JSON
CONFUSIONS_LISTED, CLASSES_LISTED = 20, 200  # in Markdown


def folder_contents(
    result: EvaluateResult, network: EvaluatedNetwork, images: LabeledSplit, classified: ClassifiedImages
) -> dict[str, bytes]:
    """Return the content of each file of the folder, by its name."""
    return {
        JSON: result.model_dump_json(indent=2).encode() + b"\n",
        MARKDOWN: _markdown(result).encode(),
        PAGE: _page(result, network, images, classified),
        PREDICTIONS: _predictions(network, images, classified).encode(),
    }


def _predictions(network: EvaluatedNetwork, images: LabeledSplit, classified: ClassifiedImages) -> str:
    """Return a table that `resnet-ops diagnose` reads, too: `prediction` is the column that it takes for the answer."""
    names, k = network.class_names, classified.top.shape[1]
    ranks = ["prediction", "probability", *(f"top{n}{part}" for n in range(2, k + 1) for part in ("", "_probability"))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", *ranks, "label_probability", "label_margin"])
    of_label = zip(classified.label_probability, label_margins(classified), strict=True)
    rows = zip(classified.rows, classified.labels, classified.top, classified.top_probability, of_label, strict=True)
    for row, label, top, probabilities, last in rows:
        likely = [cell for n, share in zip(top, probabilities, strict=True) for cell in (names[n], f"{share:.6g}")]
        writer.writerow([images.encoded.name(int(row)), names[label], *likely, *(f"{each:.6g}" for each in last)])
    return text.getvalue()


def _page(
    result: EvaluateResult, network: EvaluatedNetwork, images: LabeledSplit, classified: ClassifiedImages
) -> bytes:
    names = network.class_names
    pictures = [
        recall_of_classes(result.worst_classes, result.top1),
        reliability(result.calibration, result.confidence),
    ]
    if len(names) <= MATRIX_CLASSES:
        counts = confusion_matrix(classified.labels, classified.predicted, labels=range(len(names)))
        pictures.append(confusion("confusion", counts, names))
    with style.applied():
        charts = {picture.name: (picture, picture.svg()) for picture in pictures}

    def pictured(positions: np.ndarray, errors: Sequence[ClassificationError]) -> list[Thumbnail]:
        return [
            _thumbnail(images, network, int(classified.rows[n]), each.label, each.prediction, each.probability)
            for n, each in zip(positions, errors, strict=True)
        ]

    drawn = result.suspects[:SUSPECTS_DRAWN]
    return page.render(
        "evaluation.html.j2",
        result=result,
        charts=charts,
        errors=pictured(most_confident_errors(classified, len(result.mistakes)), result.mistakes),
        suspects=pictured(find_label_issues(classified)[: len(drawn)], drawn),
        facts=_facts(result),
    )


def _thumbnail(
    images: LabeledSplit, network: EvaluatedNetwork, row: int, label: str, prediction: str, probability: float
) -> Thumbnail:
    (encoded,) = images.encoded.read([row])
    return thumbnail(decode(encoded, network.crop), label, prediction, probability, images.encoded.name(row))


def _facts(result: EvaluateResult) -> dict[str, object]:
    """Return what is known of the evaluation, for the end of the page."""
    return {
        "file": result.file,
        "network": result.model,
        "precision": result.precision,
        "computed on": result.device,
        "images": result.images_text,
        "images that the network was trained on": "not known" if result.trained_on is None else result.trained_on,
        "images that its epoch was chosen on": "not known" if result.chose_epoch is None else result.chose_epoch,
        "left out, of classes that it does not have": ", ".join(f"{n} ({c})" for n, c in result.left_out.items()),
        "classes without images": ", ".join(result.missing_classes),
        "cannot be decoded": ", ".join(f"{bad.name}: {bad.reason}" for bad in result.first_bad_images),
        "images/s, decoding included": f"{result.images_per_second:,.0f}",
    }


def _markdown(result: EvaluateResult) -> str:
    top5 = [] if result.top5 is None else [("top-5 accuracy", percent(result.top5))]
    rows = [
        ("top-1 accuracy", f"{percent(result.top1)} ({percent(result.top1_low)} to {percent(result.top1_high)})"),
        *top5,
        ("macro recall", percent(result.macro_recall)),
        ("macro precision", percent(result.macro_precision)),
        ("macro F1", percent(result.macro_f1)),
        ("expected calibration error", percent(result.expected_calibration_error)),
        ("mean confidence", percent(result.mean_confidence)),
        ("negative log likelihood", f"{result.negative_log_likelihood:.4f}"),
        ("images", f"{result.images:,}"),
    ]
    classes, confusions = result.worst_classes, result.confusions
    lines = [
        f"# Evaluation of {_plain(result.name)} on {_plain(result.data)}",
        "",
        _plain(result.verdict),
        "",
        *_table(("", ""), rows),
        "",
        "Intervals are 95% confidence intervals (Wilson). Macro averages are over the classes that have images.",
        "",
        f"## Classes{_first(len(classes), CLASSES_LISTED)}",
        "",
        *_table(("class", "images", "recall", "precision", "F1"), map(_class_cells, classes[:CLASSES_LISTED])),
        "",
    ]
    if confusions:
        lines += [
            f"## Confusions{_first(len(confusions), CONFUSIONS_LISTED)}",
            "",
            *_table(("true class", "predicted", "images"), map(_confusion_cells, confusions[:CONFUSIONS_LISTED])),
            "",
        ]
    return "\n".join(lines)


def _first(count: int, most: int) -> str:
    return f" (the first {most:,} of {count:,})" if count > most else ""


def _class_cells(each: EvaluatedClass) -> tuple[str, ...]:
    recall, precision = (
        "" if value is None or low is None or high is None else f"{percent(value)} ({percent(low)} to {percent(high)})"
        for value, low, high in (
            (each.recall, each.recall_low, each.recall_high),
            (each.precision, each.precision_low, each.precision_high),
        )
    )
    return each.name, f"{each.images:,}", recall, precision, "" if each.f1 is None else percent(each.f1)


def _confusion_cells(each: Confusion) -> tuple[str, ...]:
    return each.label, each.prediction, f"{each.images:,}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(map(_plain, row))} |" for row in rows),
    ]


def _plain(text: str) -> str:
    """Escape what has a meaning in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~$])", r"\\\1", " ".join(text.split()))
