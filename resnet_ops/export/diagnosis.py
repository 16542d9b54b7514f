"""The whole of `resnet-ops diagnose`: finds the fault that explains why a program's answers differ from a file's own.

What the program answered is read in `answers`; the faults are in `faults`, the search for the one in `fault_search`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data import listing
from resnet_ops.data.dataset import EncodedImages
from resnet_ops.data.decode import DecodeError
from resnet_ops.data.discovery import FolderImages, is_image
from resnet_ops.data.sources import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import inputs
from resnet_ops.export.answers import Answers, read_answers
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import DiagnoseConfig
from resnet_ops.export.fault_search import FaultMatch, FaultSearch
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.program_steps import read_upright
from resnet_ops.files import Place
from resnet_ops.results import Result

DIFFERING = 5  # images that are listed


class Hypothesis(Result):
    """A fault, or several at once, and how well they explain the answers."""

    faults: tuple[str, ...] = Field(description="What the program does otherwise; () for our own preprocessing.")
    remedies: tuple[str, ...] = Field(description="What to change in the program, for each fault.")
    equal: int = Field(description="Images for which the class is equal.")
    compared: int = Field(description="Images that were compared.")
    mean_diff: float | None = Field(
        description="Mean over the images of the largest difference of probabilities, or of logits relative to the "
        "largest logit; None if there are only classes."
    )
    max_diff: float | None = Field(description="The largest such difference.")
    explains: bool = Field(description="Whether it explains the answers.")

    @property
    def name(self) -> str:
        """Return the faults as text."""
        return " + ".join(self.faults) or "our preprocessing"


class DifferingImage(Result):
    """An image for which a program's answer is another one."""

    path: str = Field(description="The image.")
    line: int = Field(description="The line of the answer.")
    theirs: str = Field(description="The program's class.")
    ours: str = Field(description="The class of the best hypothesis.")
    difference: float | None = Field(description="Largest difference of the values, if they are given.")


class DiagnoseResult(Result):
    """The explanation of another program's answers, or none."""

    verdict: Literal["equal", "explained", "unexplained"] = Field(
        description="Whether the answers are those of our preprocessing, those of a fault, or neither."
    )
    best: Hypothesis = Field(description="The explanation, or what comes nearest.")
    ours: Hypothesis = Field(description="Our own preprocessing.")
    hypotheses: tuple[Hypothesis, ...] = Field(description="The best ones, the best first, with our own preprocessing.")
    ties: tuple[Hypothesis, ...] = Field(description="Others that explain the answers as well.")
    telling: int = Field(description="Images whose answers differ from those of our preprocessing.")
    differing: tuple[DifferingImage, ...] = Field(description="The first images that the best hypothesis differs for.")
    kind: Literal["classes", "probabilities", "logits"] = Field(description="What the program's answers are.")
    answers: int = Field(description="Answers in the file of outputs.")
    images: int = Field(description="Images of them that were compared.")
    bad_lines: tuple[str, ...] = Field(description="Lines that cannot be used, and images that cannot be decoded.")
    replayed: int = Field(description="Faults and combinations of them that were tried.")
    file: Place = Field(description="The ONNX file.")
    outputs: Place = Field(description="The file of outputs.")
    model: str = Field(description="Network, such as resnet20.")
    provider: str = Field(description="ONNX Runtime's execution provider.")
    total_s: float = Field(description="Seconds from the request to this result.")


def diagnose(
    config: DiagnoseConfig, on_progress: Callable[[str], object] = lambda _: None, started_at: float | None = None
) -> DiagnoseResult:
    """Find out which fault of a program explains its answers.

    Args:
        config: The ONNX file, the program's answers, and the images.
        on_progress: Called now and then with what is being tried.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: A file cannot be used, or it is not known which images were classified.
    """
    started_at = started_at or time.time()
    return diagnose_with(Classifier(config.file, config.provider), config, on_progress, started_at)


def diagnose_with(
    classifier: Classifier, config: DiagnoseConfig, on_progress: Callable[[str], object], started_at: float
) -> DiagnoseResult:
    """Find out which fault explains a program's answers, with a file that is checked and loaded: see `diagnose`."""
    assert config.outputs is not None  # the config has checked it
    images = _open_images(config, classifier.metadata)
    answers = read_answers(config.outputs.expanduser(), images, classifier.class_names)
    chosen = answers.subset(_spread(len(answers), config.images))
    chosen, broken = _decodable(chosen, images, classifier.metadata)
    search = FaultSearch(classifier, images, chosen, on_progress)
    ranked = search.run()
    ours, explaining = search.ours, [match for match in ranked if match.faults and match.explains(search.ours)]
    best = explaining[0] if explaining else ranked[0] if ours.misses else ours
    ranked.sort(key=lambda match: match is not best)
    return DiagnoseResult(
        verdict="explained" if explaining else "unexplained" if ours.misses else "equal",
        best=_describe(best, ours),
        ours=_describe(ours, ours),
        hypotheses=tuple(_describe(match, ours) for match in _with(ours, ranked[: config.top])),
        ties=tuple(_describe(match, ours) for match in explaining[1:] if match.ties(best)),
        telling=int(ours.missed.sum()),
        differing=tuple(_differing(best, chosen, images, classifier.class_names)),
        kind=chosen.kind,
        answers=len(answers),
        images=len(chosen),
        bad_lines=(*answers.bad_lines, *broken),
        replayed=search.replayed,
        file=config.file.absolute(),
        outputs=config.outputs.absolute(),
        model=classifier.metadata.model,
        provider=classifier.session.provider,
        total_s=time.time() - started_at,
    )


def _open_images(config: DiagnoseConfig, metadata: ModelMetadata) -> EncodedImages:
    """Return the images that may have been classified: all in a folder, or the validation images of a dataset."""
    if config.data is not None and Path(config.data).expanduser().is_dir():
        root = Path(config.data).expanduser()
        names = sorted(file.name for file in listing.list_files(root) if is_image(file.name))
        if names:
            return FolderImages(root, tuple(names), np.zeros(len(names), np.int64))
    if config.data is not None:
        return open_source(config.data).encoded("val")
    resolved = inputs.find_exported_checkpoint(config.file.expanduser(), metadata.checkpoint_sha256)
    if resolved is not None and resolved.run is not None:
        return open_source(resolved.run.read().config).encoded("val")
    if metadata.data in DATA_SETS:
        return open_source(DataConfig(data=metadata.data)).encoded("val")
    raise UserError(
        f"It is not known which images {config.outputs} is about.", "Give the folder that they are in: --data."
    )


def _spread(answers: int, count: int) -> np.ndarray:
    """Choose up to `count` of the answers: tens of neighbors, so that lists out of step show, spread over all."""
    rows = np.arange(answers)
    blocks = np.array_split(rows, max(1, count // 10))
    return rows if answers <= count else np.concatenate([block[:10] for block in blocks])


def _decodable(answers: Answers, images: EncodedImages, metadata: ModelMetadata) -> tuple[Answers, list[str]]:
    """Leave out the answers for images that cannot be decoded, and return why.

    Raises:
        UserError: None can be.
    """
    rows, broken = [], []
    for row, image in enumerate(answers.images):
        try:
            (encoded,) = images.read([int(image)])
            if isinstance(encoded, OSError):
                raise DecodeError(encoded.strerror or str(encoded))
            read_upright(encoded, metadata.preprocessing.channels)
            rows.append(row)
        except DecodeError as error:
            broken.append(f"{images.name(int(image))}: {error}")
    if not rows:
        raise UserError(
            f"None of the {len(broken):,} images can be decoded, first {broken[0]}.", "Choose others: --data."
        )
    return answers.subset(np.array(rows)), broken


def _describe(match: FaultMatch, ours: FaultMatch) -> Hypothesis:
    differences = None if match.differences is None else match.differences[match.known]
    return Hypothesis(
        faults=tuple(fault.name for fault in match.faults),
        remedies=tuple(dict.fromkeys(fault.remedy for fault in match.faults)),
        equal=int(match.equal.sum()),
        compared=int(match.known.sum()),
        mean_diff=None if differences is None else float(differences.mean()),
        max_diff=None if differences is None else float(differences.max()),
        explains=match.explains(ours),
    )


def _with(ours: FaultMatch, ranked: list[FaultMatch]) -> list[FaultMatch]:
    return ranked if ours in ranked else [*ranked, ours]


def _differing(
    match: FaultMatch, answers: Answers, images: EncodedImages, class_names: Sequence[str]
) -> Iterator[DifferingImage]:
    def name(label: int) -> str:
        return class_names[label] if 0 <= label < len(class_names) else str(label)

    for row in np.flatnonzero(match.missed)[:DIFFERING]:
        yield DifferingImage(
            path=images.name(int(answers.images[row])),
            line=int(answers.lines[row]),
            theirs=name(int(answers.classes[row])),
            ours=name(int(match.top[row])),
            difference=None if match.differences is None else float(match.differences[row]),
        )
