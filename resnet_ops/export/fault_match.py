"""What a combination of faults gives, compared with a program's answers: whether it explains them.

Classes alone match by chance: a fault needs answers that tell it from our preprocessing. So do values that are the same
for all images, which many faults give. How near values are is measured by how much they vary between images. The search
is in `fault_search`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from resnet_ops.export.answers import Answers
from resnet_ops.export.classifier import softmax
from resnet_ops.export.program_steps import Fault

TOLERANCE = 0.02  # of a probability, or of the largest logit: fp16, TF32 and other JPEG decoders stay below
REPLAY_TOLERANCE = 0.1  # of a fault: a level of rounding of another resize can do that to a few images
SHARE = 0.1  # of what varies between images: nearer than that are answers of the same image only
REPLAY_SHARE = 0.25  # the same of a fault, for the few images
EXACT = 0.05  # of the tolerance: mean difference of answers that need no explanation
NOISE = 1e-4  # of a probability, or of the largest logit: numbers of few digits and fp16 differ by that
ROUNDING = 1e-6  # of fp32
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
    def compared(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the predicted values and the program's, if it gave some, as they are compared."""
        ours, theirs = self.predicted, self.answers.values
        if theirs is None or self.answers.kind != "logits":
            return ours, theirs
        # Softmax ignores what is added to all of an image's logits.
        ours, theirs = (x - x.mean(1, keepdims=True) for x in (ours, theirs))
        largest = np.abs(theirs).max() or 1
        return ours / largest, theirs / largest

    @cached_property
    def differences(self) -> np.ndarray | None:
        """Return the largest difference of the values of each image, if the program gave some."""
        ours, theirs = self.compared
        return None if theirs is None else np.asarray(np.abs(ours - theirs).max(1))

    @cached_property
    def spread(self) -> float:
        """Return how much the predicted values vary between images; of one image that is not known."""
        distances = _from_median(self.compared[0][self.known])
        return float(np.sqrt((distances**2).mean())) if len(distances) > 1 else np.inf

    @property
    def tolerance(self) -> float:
        """Return the difference up to which answers of one image are equal."""
        return min(TOLERANCE, max(SHARE * self.spread, NOISE))

    @cached_property
    def missed(self) -> np.ndarray:
        """Return whether each answer is another one: by its values, or by its class unless that is a near tie."""
        values, _ = self.compared
        limit = self.tolerance
        if self.differences is not None and self.faults:
            limit = min(REPLAY_TOLERANCE, max(REPLAY_SHARE * self.spread, NOISE))
        theirs = values[np.arange(len(values)), self.answers.classes % values.shape[1]]
        near = np.nan_to_num(values, nan=-np.inf).max(1) - theirs <= limit
        far = False if self.differences is None else ~(self.differences <= limit)
        return np.asarray(self.known & (far | (~self.equal & ~near)))

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
        is_near = self.distance <= self.tolerance and self.distance * 4 <= ours.distance
        return is_near and self.misses <= count // 20 and self.misses * 4 <= ours.misses

    def explains(self, ours: "FaultMatch") -> bool:
        """Return whether the answers are explained by it, and not by chance."""
        if not self.faults or not self.fits(ours):
            return self.fits(ours)
        return (
            not self.is_constant if self.differences is not None else self.evidence(ours) >= EVIDENCE * len(self.faults)
        )

    def evidence(self, ours: "FaultMatch") -> int:
        """Return the number of classes that it gives and our preprocessing does not, if they are not all the same."""
        return min(int((ours.missed & self.known & self.equal).sum()), self.varying)

    @cached_property
    def varying(self) -> int:
        """Return the number of the program's answers that are not the commonest one."""
        theirs = self.compared[1]
        if theirs is None:
            classes = self.answers.classes[self.known]
            return len(classes) - int(np.unique(classes, return_counts=True)[1].max())
        return int((_from_median(theirs[self.known]) > NOISE).sum())

    @property
    def is_constant(self) -> bool:
        """Return whether the program gives all images the same answer, or all but a few the same values."""
        others = int(self.known.sum()) - 1
        return self.varying < (1 if self.differences is None else max(1, min(EVIDENCE, others)))

    def may_cause(self, ours: "FaultMatch") -> bool:
        """Return whether its answers are nearly the same for all images too, and near most of the program's.

        A combination is not needed for that: one of its faults makes them the same.
        """
        if self.differences is None or ours.differences is None:
            return self.fits(ours)
        varies_little = self.spread <= max(SHARE * ours.spread, NOISE)
        theirs, others = (float(np.nanmedian(differences)) for differences in (self.differences, ours.differences))
        return len(self.faults) == 1 and varies_little and theirs <= min(TOLERANCE, others / 4)

    @property
    def tells(self) -> bool:
        """Return whether the values vary so much between images that another image's would be noticed."""
        return self.differences is None or SHARE * self.spread >= max(float(np.nanmax(self.differences)), ROUNDING)

    @property
    def is_exact(self) -> bool:
        """Return whether the answers are so near that nothing is to be explained."""
        return not self.misses and (self.differences is None or self.distance <= EXACT * self.tolerance)

    def closer_than(self, ours: "FaultMatch") -> bool:
        """Return whether it is much closer where both are within the tolerance."""
        return self.differences is not None and not ours.is_exact and self.distance * 5 < ours.distance

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


def _from_median(values: np.ndarray) -> np.ndarray:
    """Return how far the values (N, classes) of each image are from what most images have."""
    return np.asarray(np.abs(values - np.median(values, 0)).max(1))
