"""What a combination of faults gives, compared with a program's answers: whether it explains them.

Classes alone match by chance: a fault needs answers that tell it from our preprocessing. The search is in
`fault_search`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from resnet_ops.export.answers import Answers
from resnet_ops.export.classifier import softmax
from resnet_ops.export.program_steps import Fault

TOLERANCE = 0.02  # of a probability, or of the largest logit: fp16, TF32 and other JPEG decoders stay below
REPLAY_TOLERANCE = 0.1  # of a fault: a level of rounding of another resize can do that to a few images
EXACT = 1e-3  # mean difference of answers that need no explanation
EVIDENCE = 5  # classes that tell it from ours, for each fault: or some of thousands of combinations match by chance
MISSED_SHARE = 0.01  # of classes that a fault may miss

Combination = tuple[Fault, ...]  # at most one of each stage; the one of the output last


@dataclass(frozen=True, eq=False)
class FaultMatch:
    """A combination of faults, and what the network answers with them, compared with what a program answered.

    Args:
        faults: The faults.
        predicted: What they give, (N, classes); rows of NaN are not known.
        answers: What the program answered, N.
        order: The places of the faults in the table of faults, where the likeliest come first.
    """

    faults: Combination
    predicted: np.ndarray
    answers: Answers
    order: tuple[int, ...] = ()

    @cached_property
    def known(self) -> np.ndarray:
        """Return whether each answer can be compared."""
        return np.asarray(~np.isnan(self.predicted).any(1))

    @cached_property
    def top(self) -> np.ndarray:
        """Return the predicted classes."""
        return np.asarray(np.where(self.known, np.nan_to_num(self.predicted, nan=-np.inf).argmax(1), -9))

    @cached_property
    def equal(self) -> np.ndarray:
        """Return whether each class is that of the program."""
        return np.asarray(self.top == self.answers.classes % self.predicted.shape[1])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Return the probability of each of the program's classes."""
        p = softmax(self.predicted) if self.answers.kind == "logits" else self.predicted
        return np.asarray(p[np.arange(len(p)), self.answers.classes % p.shape[1]])

    @cached_property
    def differences(self) -> np.ndarray | None:
        """Return the largest difference of the values of each image, if the program gave some."""
        theirs = self.answers.values
        if theirs is None:
            return None
        ours = self.predicted
        if self.answers.kind == "logits":  # softmax ignores what is added to all of an image's logits
            ours, theirs = (x - x.mean(1, keepdims=True) for x in (ours, theirs))
            largest = np.abs(theirs).max() or 1
            ours, theirs = ours / largest, theirs / largest
        return np.asarray(np.abs(ours - theirs).max(1))

    @cached_property
    def missed(self) -> np.ndarray:
        """Return whether each answer is another one: by its values, or by its class unless that is a near tie."""
        if self.differences is not None:
            return np.asarray(self.known & ~(self.differences <= (REPLAY_TOLERANCE if self.faults else TOLERANCE)))
        near = np.nan_to_num(self.predicted, nan=-np.inf).max(1) - self.probabilities <= TOLERANCE
        return np.asarray(self.known & ~self.equal & ~near)

    @property
    def misses(self) -> int:
        """Return the number of answers that are other ones."""
        return int(self.missed.sum())

    @cached_property
    def distance(self) -> float:
        """Return how far it is from the answers on average: in values, or as improbable as the classes are."""
        if self.differences is not None:
            return float(np.nanmean(self.differences))
        return float(-np.nanmean(np.log(self.probabilities.clip(1e-6))))

    @property
    def rank(self) -> tuple[float, ...]:
        """Return a key that sorts the best first; of equals, what deviates least, in the order of the table."""
        if self.differences is not None:
            return self.distance, len(self.faults), *self.order
        share = self.misses / max(1, int(self.known.sum()))
        if share > MISSED_SHARE:
            return share, self.distance
        filters = sum(bool(fault.geometry and fault.filter_name) for fault in self.faults)
        return share, len(self.faults), filters, -int(self.equal.sum()), *self.order

    def fits(self, ours: "FaultMatch") -> bool:
        """Return whether it gives the answers, `ours` being the match without a fault; that may be by chance."""
        if not self.faults or not ours.misses:
            return not self.misses and (not self.faults or self.closer_than(ours))
        count = int(self.known.sum())
        if self.differences is None:
            return self.misses <= count * MISSED_SHARE and self.misses * 10 <= ours.misses
        is_near = self.distance <= TOLERANCE and self.distance * 4 <= ours.distance
        return is_near and self.misses <= count // 20 and self.misses * 4 <= ours.misses

    def explains(self, ours: "FaultMatch") -> bool:
        """Return whether the answers are explained by it: classes by chance only if few tell it from ours."""
        return self.fits(ours) and (
            not self.faults or self.differences is not None or self.evidence(ours) >= EVIDENCE * len(self.faults)
        )

    def evidence(self, ours: "FaultMatch") -> int:
        """Return the number of classes that it gives and our preprocessing does not, if they are not all the same."""
        classes = self.answers.classes[self.known]
        commonest = int(np.unique(classes, return_counts=True)[1].max())
        return min(int((ours.missed & self.known & self.equal).sum()), len(classes) - commonest)

    def closer_than(self, ours: "FaultMatch") -> bool:
        """Return whether it is much closer where both are within the tolerance."""
        return self.differences is not None and ours.distance > EXACT and self.distance * 5 < ours.distance

    def ties(self, best: "FaultMatch") -> bool:
        """Return whether it explains the answers as well as the best does."""
        as_near = self.misses == best.misses if self.differences is None else self.distance <= 2 * best.distance + 1e-4
        return as_near and len(self.faults) == len(best.faults)

    def shares_geometry(self, other: "FaultMatch") -> bool:
        """Return whether all that is different from another match is the filter of the resize."""
        pairs = list(zip(self.faults, other.faults, strict=False))
        return len(self.faults) == len(other.faults) and all(
            a is b or a.name == b.name or (a.stage == b.stage == "resize" and a.geometry == b.geometry)
            for a, b in pairs
        )
