"""Search for the faults that explain a program's answers: each is replayed, then the best are combined.

They are replayed with the file itself in ONNX Runtime: on some images first, and on all if they explain those best. The
faults are in `faults`, what explains is decided in `fault_match`, the command is `diagnosis`.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from resnet_ops.data.dataset import EncodedImages
from resnet_ops.data.decode import decode_whole
from resnet_ops.export.answers import Answers
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.fault_match import EVIDENCE, Combination, FaultMatch
from resnet_ops.export.faults import as_told, input_faults, output_faults
from resnet_ops.export.program_steps import Fault, right_steps

SCREENED = {"classes": 24, "probabilities": 10, "logits": 10}  # images that every fault is replayed on first
CHUNK_IMAGES, CHUNK_BYTES = 32, 128 * 2**20  # decoded at a time
FINALISTS = 16  # combinations of faults that are replayed on all images
FITTING = 48  # of these, if they give all the classes so far
MOST_FAULTS = 3  # at a time, as of a program of OpenCV: BGR, its resize, no normalization
BEAM, BEAM_EACH = 6, 3  # combinations that another fault is added to: the best, and the best with a fault of each step
CROSSED = 6  # faults of each step that are then combined with those of the others
SMALL = 64 * 64  # pixels of inputs that every combination is tried for; of larger ones those with the best of each step
PARTNERS = 12  # that number of them


@dataclass
class FaultSearch:
    """The search for the faults that explain answers, in rounds of one more fault each."""

    classifier: Classifier
    images: EncodedImages
    answers: Answers
    on_progress: Callable[[str], object]
    replayed: int = 0
    ours: FaultMatch = field(init=False)
    seen: dict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))  # hashes of inputs, for some rows

    def run(self) -> list[FaultMatch]:
        """Return what was compared on all images, the best first."""
        metadata = self.classifier.metadata
        everything = np.arange(len(self.answers))
        self.on_progress("Comparing with our preprocessing")
        compared = self.matches([()], everything)
        self.ours = compared[0]
        beam: list[Combination] = [()]
        partners = input_faults(metadata)
        for count in range(1, MOST_FAULTS + 1):
            compared.sort(key=lambda match: match.rank)
            has_little = self.ours.differences is None and self.ours.misses < EVIDENCE  # too little for a single fault
            if self.is_settled(compared) or (count > 1 and (has_little or self.ours.is_constant)):
                break
            tried = list(dict.fromkeys(_combined(beam, partners)))
            self.on_progress(
                f"Replaying {len(tried):,} {'faults' if count == 1 else f'combinations of {count} faults'}"
            )
            rows = self.most_telling()
            screened = self.matches([(), *tried] if count == 1 else tried, rows)
            if count > 1:
                screened += self.matches(list(_neighbors(_closest(screened), partners)), rows)
                screened += self.matches(list(_crossed(screened)), rows)
            screened.sort(key=lambda match: match.rank)
            finalists = _finalists(screened)
            self.on_progress(f"Replaying the best on all {len(self.answers):,} images")
            compared += self.matches(finalists, everything)
            screened.sort(key=lambda match: match.distance)
            beam = _diverse(screened)
            if count == 1 and metadata.preprocessing.height * metadata.preprocessing.width > SMALL:
                partners = _best_of_each_stage(screened)
        return sorted(compared, key=lambda match: match.rank)

    def is_settled(self, compared: Sequence[FaultMatch]) -> bool:
        """Return whether the answers are ours, or one of the matches fits: more faults at once had less evidence."""
        return self.ours.is_exact or any(match.faults and match.fits(self.ours) for match in compared)

    def most_telling(self) -> np.ndarray:
        """Return some rows: of those where our answer is another one three quarters, the others of the rest."""
        count = SCREENED[self.answers.kind]
        missed = self.ours.missed if self.ours.missed.any() else np.ones(len(self.answers), bool)
        differing, same = np.flatnonzero(missed), np.flatnonzero(~missed)
        others = min(len(same), max(count // 4, count - len(differing)))
        return np.sort(np.concatenate([_evenly(differing, count - others), _evenly(same, others)]))

    def matches(self, combinations: Sequence[Combination], rows: np.ndarray) -> list[FaultMatch]:
        """Compare combinations of faults before the network, alone and with each fault after it.

        Those that give the network the same inputs as an earlier one are left out.
        """
        answers, metadata = self.answers.subset(rows), self.classifier.metadata
        after = output_faults(metadata, answers.kind)
        order = {fault.name: place for place, fault in enumerate([*input_faults(metadata), *after])}
        compared, seen = [], self.seen[rows.tobytes()]

        def add(faults: Combination, predicted: np.ndarray) -> None:
            compared.append(FaultMatch(faults, predicted, answers, tuple(order[fault.name] for fault in faults)))

        for faults, outputs, digest in self.replay(combinations, answers):
            if digest not in seen:
                seen.add(digest)
                add(faults, as_told(outputs, metadata, answers.kind))
                for fault in after:
                    if faults and not fault.combines:
                        continue
                    predicted = fault.function(outputs, answers.lines)
                    if np.isnan(predicted).all(1).sum() <= len(predicted) // 2:
                        add((*faults, fault), predicted)
        self.replayed += len(compared)
        return compared

    def replay(
        self, combinations: Sequence[Combination], answers: Answers
    ) -> Iterator[tuple[Combination, np.ndarray, bytes]]:
        """Yield for each combination the outputs of the network (N, classes), and a hash of its inputs."""
        outputs: list[list[np.ndarray]] = [[] for _ in combinations]
        hashes = [hashlib.sha256() for _ in combinations]
        right = right_steps(self.classifier.metadata)
        for chunk in self.chunks(answers.images):
            replay = ChunkReplay(self.classifier, *chunk)
            for faults, output, total in zip(combinations, outputs, hashes, strict=True):
                steps = right | {fault.stage: fault.function for fault in faults}
                digest, computed = replay.run(*(steps[s] for s in ("read", "resize", "color", "normalize", "layout")))
                output.append(computed)
                total.update(digest)
        for faults, output, total in zip(combinations, outputs, hashes, strict=True):
            yield faults, np.concatenate(output), total.digest()

    def chunks(self, images: np.ndarray) -> Iterator[tuple[list[bytes], list[np.ndarray]]]:
        """Yield images, encoded and decoded, as many at a time as may be in memory."""
        chunk: tuple[list[bytes], list[np.ndarray]] = ([], [])
        for image in images:
            (encoded,) = self.images.read([int(image)])
            assert isinstance(encoded, bytes)  # it was read before
            chunk[0].append(encoded)
            chunk[1].append(decode_whole(encoded, self.classifier.metadata.preprocessing.channels))
            if len(chunk[0]) == CHUNK_IMAGES or sum(pixels.nbytes for pixels in chunk[1]) > CHUNK_BYTES:
                yield chunk
                chunk = ([], [])
        if chunk[0]:
            yield chunk


class ChunkReplay:
    """Replays programs on a few images; what two of them have in common is computed once."""

    def __init__(self, classifier: Classifier, encoded: list[bytes], upright: list[np.ndarray]) -> None:
        self.session, self.steps = classifier.session, classifier.metadata.preprocessing
        self.encoded, self.upright = encoded, upright
        self.decoded = {decode_whole: upright}
        self.resized: dict[tuple[object, object], list[np.ndarray]] = {}
        self.outputs: dict[bytes, np.ndarray] = {}

    def run(
        self, read: Callable[..., np.ndarray], resize: Callable[..., np.ndarray], *after: Callable[..., np.ndarray]
    ) -> tuple[bytes, np.ndarray]:
        """Return a hash of the network's inputs, and its outputs (N, classes)."""
        if read not in self.decoded:
            decoded = [read(encoded, self.steps.channels) for encoded in self.encoded]
            same = [np.array_equal(a, b) for a, b in zip(decoded, self.upright, strict=True)]
            self.decoded[read] = [b if s else a for a, b, s in zip(decoded, self.upright, same, strict=True)]
        if (read, resize) not in self.resized:
            self.resized[read, resize] = [resize(pixels, self.steps) for pixels in self.decoded[read]]
        color, normalize, layout = after
        batches = []
        for _, group in itertools.groupby(self.resized[read, resize], key=np.shape):
            x = normalize(color(np.stack(list(group))), self.steps)
            batches.append(np.ascontiguousarray(layout(x)))
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(repr(batch.shape).encode() + batch.tobytes())
        key = digest.digest()
        if key not in self.outputs:
            self.outputs[key] = np.nan_to_num(np.concatenate([self.session.run(batch) for batch in batches]), nan=0.0)
        return key, self.outputs[key]


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))] if len(rows) else rows


def _before_network(faults: Combination) -> Combination:
    return tuple(fault for fault in faults if fault.stage != "output")


def _finalists(ranked: Sequence[FaultMatch]) -> list[Combination]:
    """Return the best combinations, and if only classes are known others that give all of them, too."""
    best = list(dict.fromkeys(_before_network(match.faults) for match in ranked))[:FINALISTS]
    fitting = [_before_network(m.faults) for m in ranked if m.differences is None and not m.misses]
    return list(dict.fromkeys([*best, *fitting[:FITTING]]))


def _combined(beam: Sequence[Combination], partners: Sequence[Fault]) -> Iterator[Combination]:
    """Yield each combination of the beam with one more fault, of another step."""
    for faults in beam:
        for partner in partners:
            if all(fault.stage != partner.stage for fault in faults):
                yield tuple(sorted((*faults, partner), key=lambda fault: fault.stage))


def _closest(matches: Sequence[FaultMatch]) -> Combination:
    return _before_network(min(matches, key=lambda match: match.distance).faults)


def _neighbors(faults: Combination, partners: Sequence[Fault]) -> Iterator[Combination]:
    """Yield the combination with one of its faults exchanged for another of the same step."""
    for fault in faults:
        for partner in partners:
            if partner.stage == fault.stage:
                yield tuple(partner if each is fault else each for each in faults)


def _crossed(matches: Sequence[FaultMatch]) -> Iterator[Combination]:
    """Yield every combination of the faults that come nearest in the place of each of the nearest combination's.

    What a fault does can depend on another's: exchanging one at a time does not get from the second best to the best.
    """
    nearest, ranked = _closest(matches), sorted(matches, key=lambda match: match.distance)
    choices: dict[str, list[Fault]] = defaultdict(list)
    for faults in dict.fromkeys(_before_network(match.faults) for match in ranked):
        other = [(a, b) for a, b in zip(faults, nearest, strict=False) if a is not b]
        if len(faults) == len(nearest) and len(other) <= 1:
            for mine, fault in other or zip(faults, nearest, strict=True):
                if mine.stage == fault.stage and len(choices[fault.stage]) < CROSSED:
                    choices[fault.stage].append(mine)
    yield from itertools.product(*(choices[fault.stage] for fault in nearest))


def _diverse(ranked: Sequence[FaultMatch]) -> list[Combination]:
    """Return the best combinations, and of each step the best that has a fault in it."""
    inputs_ranked = list(dict.fromkeys(_before_network(match.faults) for match in ranked))
    of_stage: dict[str, list[Combination]] = defaultdict(list)
    for faults in inputs_ranked:
        for fault in faults:
            of_stage[fault.stage].append(faults)
    best_of_stages = (faults for ranked_of_stage in of_stage.values() for faults in ranked_of_stage[:BEAM_EACH])
    return list(dict.fromkeys([*inputs_ranked[:BEAM], *best_of_stages]))


def _best_of_each_stage(ranked: Sequence[FaultMatch]) -> list[Fault]:
    """Return the faults that explain most alone, `PARTNERS` of each step."""
    by_stage: dict[str, list[Fault]] = {}
    for fault in dict.fromkeys(fault for match in ranked for fault in match.faults if fault.stage != "output"):
        by_stage.setdefault(fault.stage, []).append(fault)
    return [fault for faults in by_stage.values() for fault in faults[:PARTNERS]]
