"""The whole of `resnet-ops diagnose`: finds the fault that explains why a program's answers differ from a file's own.

What the program answered is read in `answers`; the faults are in `faults`, the search for the one in `fault_search`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from resnet_ops.data import listing
from resnet_ops.data.dataset import EncodedImages
from resnet_ops.data.decode import DecodeError, decode_whole
from resnet_ops.data.folders import FolderImages
from resnet_ops.data.image_kinds import is_image
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import inputs
from resnet_ops.export.answers import Answers, read_answers
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import DiagnoseConfig
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.export.fault_match import EVIDENCE, FaultMatch
from resnet_ops.export.fault_search import FaultSearch
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.trained_images import open_intact, training_config
from resnet_ops.files import Place
from resnet_ops.results import Result

DIFFERING = 5  # images that are listed
MORE_VALUES = "Give probabilities instead of classes, or more images."
MORE_IMAGES = "Give answers for more images that differ."
COMPARE_TWO = "Compare what your program gives the network for two images, and what it reads from the output."


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
    explains: bool = Field(description="Whether it is what explains the answers, or explains them as well as that.")

    @property
    def name(self) -> str:
        """Return the faults as text."""
        return " + ".join(self.faults) or "our preprocessing"


class DifferingImage(Result):
    """An image for which a program's answer is another one."""

    path: str = Field(description="The image.")
    line: int = Field(description="The line of the answer.")
    theirs: str = Field(description="The program's class.")
    ours: str = Field(description="The class that it is compared with.")
    difference: float | None = Field(description="Largest difference of the values, if they are given.")


class DiagnoseResult(Result):
    """The explanation of another program's answers, or none."""

    verdict: Literal["equal", "explained", "undecided", "unexplained"] = Field(
        description="Whether the answers are those of our preprocessing, those of a fault, too few to tell, or neither."
    )
    explanation: str | None = Field(
        description="What explains the answers: the best's faults, or what they have in common with ties that differ "
        "in the filter of the resize only."
    )
    undecided: str | None = Field(description="Why it cannot be told what explains the answers.")
    undecided_remedy: str | None = Field(description="What to do to be told more.")
    best: Hypothesis = Field(description="The explanation, or what comes nearest.")
    ours: Hypothesis = Field(description="Our own preprocessing.")
    hypotheses: tuple[Hypothesis, ...] = Field(description="The best ones, the best first, with our own preprocessing.")
    ties: tuple[Hypothesis, ...] = Field(
        description="Others that fit the answers as well as the best; if all answers are the same, all possible ones."
    )
    telling: int = Field(description="Images whose answers differ from those of our preprocessing.")
    differing: tuple[DifferingImage, ...] = Field(
        description="The first images that differ from the best hypothesis, if that explains the answers, otherwise "
        "from our preprocessing."
    )
    kind: Literal["classes", "probabilities", "logits"] = Field(description="What the program's answers are.")
    column: str | None = Field(description="The column that classes were read from, if another could have been it.")
    read_as: Literal["names", "numbers"] | None = Field(
        description="What the classes were read as, if they can be both: that which comes nearer to ours."
    )
    is_cut: bool = Field(description="Whether the file of outputs has more lines than are read.")
    answers: int = Field(description="Images with an answer in the file of outputs.")
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
    config = with_exported_file(config)
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
    read_as: Literal["names", "numbers"] | None = None
    if chosen.numbered is not None:
        numbered = replace(chosen, classes=chosen.numbered)
        names_are_nearer = _nearest(classifier, images, chosen) <= _nearest(classifier, images, numbered)
        chosen, read_as = (chosen, "names") if names_are_nearer else (numbered, "numbers")
    search = FaultSearch(classifier, images, chosen, on_progress)
    ranked = search.run()
    ours = search.ours
    is_constant = bool(ours.misses) and ours.is_constant
    fitting = [m for m in ranked if m.faults and (m.may_cause(ours) if is_constant else m.fits(ours))]
    explaining = [match for match in fitting if match.explains(ours)]
    doubt = None if explaining else _doubt(fitting, ours)
    candidates = explaining or fitting
    selected = _plausible(ranked, candidates)
    best = candidates[0] if candidates else ours if doubt or not ours.misses else selected[0]
    ties = [match for match in candidates[1:] if is_constant or match.ties(best)]
    selected = sorted(selected, key=lambda match: (match is not best, match not in ties))[: config.top]
    winners = [best, *ties] if explaining else [] if ours.misses or doubt else [ours]

    def describe(match: FaultMatch) -> Hypothesis:
        return _describe(match, explains=match in winners)

    return DiagnoseResult(
        verdict="explained" if explaining else "undecided" if doubt else "unexplained" if ours.misses else "equal",
        explanation=common_name(best, ties) if explaining else None,
        undecided=doubt.reason if doubt else None,
        undecided_remedy=doubt.remedy if doubt else None,
        best=describe(best),
        ours=describe(ours),
        hypotheses=tuple(map(describe, selected if ours in selected else [*selected, ours])),
        ties=tuple(map(describe, ties)),
        telling=int(ours.missed.sum()),
        differing=tuple(_differing(best if explaining else ours, chosen, images, classifier.class_names)),
        kind=chosen.kind,
        column=answers.column,
        read_as=read_as,
        is_cut=answers.is_cut,
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
    trained_on = training_config(None, metadata.data)
    if trained_on and (own := open_intact(trained_on, metadata.data_fingerprint)):
        return own.encoded("val")
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
            decode_whole(encoded, metadata.preprocessing.channels)
            rows.append(row)
        except DecodeError as error:
            broken.append(f"{images.name(int(image))}: {error}".rstrip("."))
    if not rows:
        raise UserError(
            f"None of the {len(broken):,} images can be decoded, first {broken[0]}.", "Choose others: --data."
        )
    return answers.subset(np.array(rows)), broken


def _nearest(classifier: Classifier, images: EncodedImages, answers: Answers) -> tuple[int, int]:
    """Return how few answers differ from those of our preprocessing, and whether only with a fault after the network.

    That is what reading names as numbers, or the other way around, looks like.
    """
    search = FaultSearch(classifier, images, answers, lambda _: None)
    return min((match.misses, len(match.faults)) for match in search.matches([()], np.arange(len(answers))))


@dataclass(frozen=True)
class _Doubt:
    """Reason that it cannot be told what explains the answers, and what to do then."""

    reason: str
    remedy: str


def _doubt(fitting: Sequence[FaultMatch], ours: FaultMatch) -> _Doubt | None:
    """Return why it cannot be told what explains the answers; None if it can, or nothing does."""
    compared, is_classes = int(ours.known.sum()), ours.differences is None
    if not ours.misses:
        same = _Doubt("the network's own answers are nearly the same for all these images", MORE_IMAGES)
        return None if ours.tells else same
    needed = EVIDENCE * (len(fitting[0].faults) if fitting else 1)
    if is_classes and ours.misses < needed:
        differ = "differs" if ours.misses == 1 else "differ"
        return _Doubt(f"too few answers differ from ours: {ours.misses:,} of {compared:,} {differ}", MORE_VALUES)
    if ours.is_constant and compared > 1:
        what, images = "class" if is_classes else "answer", "nearly all images" if ours.varying else "all images"
        return _Doubt(
            f"your program gives the same {what} for {images}",
            f"{MORE_VALUES} {COMPARE_TWO}" if is_classes else COMPARE_TWO,
        )
    if fitting and is_classes:
        return _Doubt("nearly all answers are the same class, or near ties", MORE_VALUES)
    return _Doubt("there is only one image", MORE_IMAGES) if fitting else None


def _plausible(ranked: Sequence[FaultMatch], candidates: Sequence[FaultMatch]) -> list[FaultMatch]:
    """Leave out combinations that neither fit nor come twice as near as the best single fault: they fit by chance."""
    nearest = min(match.distance for match in ranked if len(match.faults) <= 1)
    return [m for m in ranked if m in candidates or len(m.faults) <= 1 or m.distance * 2 <= nearest]


def common_name(best: FaultMatch, ties: Sequence[FaultMatch]) -> str:
    """Return the names of the faults; without the filter of the resize if ties differ in that."""
    if not any(match.shares_geometry(best) for match in ties):
        return " + ".join(fault.name for fault in best.faults)
    names = [
        fault.geometry or "another filter in the resize" if fault.stage == "resize" else fault.name
        for fault in best.faults
    ]
    return f"{' + '.join(names)}; which filter cannot be told"


def _describe(match: FaultMatch, *, explains: bool) -> Hypothesis:
    differences = None if match.differences is None else match.differences[match.known]
    return Hypothesis(
        faults=tuple(fault.name for fault in match.faults),
        remedies=tuple(dict.fromkeys(fault.remedy for fault in match.faults)),
        equal=int(match.equal.sum()),
        compared=int(match.known.sum()),
        mean_diff=None if differences is None else float(differences.mean()),
        max_diff=None if differences is None else float(differences.max()),
        explains=explains,
    )


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
