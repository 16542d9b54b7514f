"""Images to look at: the most confident mistakes, and label issues, those whose labels may be wrong.

The rule for label issues is that of confident learning (Northcutt et al. 2021, sec. 3.1), their order that of its
normalized margin. They need a network that was not trained on these images: one that was may have memorized their
labels, wrong ones too.
"""

import numpy as np

from resnet_ops.evaluation.classification import ClassifiedImages


def most_confident_errors(classified: ClassifiedImages, most: int) -> np.ndarray:
    """Return the positions of the misclassified images of the highest confidence, the highest first."""
    order = np.argsort(-classified.confidence, kind="stable")
    return np.asarray(order[~classified.correct[order]][:most])


def label_margins(classified: ClassifiedImages) -> np.ndarray:
    """Return the probability of the label minus that of the most likely other class, (N,) float64, -1 to 1."""
    if classified.top.shape[1] == 1:
        return np.ones(len(classified))
    other = np.where(classified.correct, classified.top_probability[:, 1], classified.confidence)
    return np.asarray(classified.label_probability - other)


def find_label_issues(classified: ClassifiedImages) -> np.ndarray:
    """Return the positions of images whose labels may be wrong, the least margin first.

    The others include mistakes that the network is not confident of, as of images between two classes. Of label issues
    the network finds another class the most likely one, with at least the mean probability that it gives to
    that class for the images labeled so.
    """
    classes = int(max(classified.labels.max(), classified.predicted.max())) + 1
    images = np.bincount(classified.labels, minlength=classes)
    sums = np.bincount(classified.labels, classified.label_probability, minlength=classes)
    # A class without images has no threshold of its own: no image is suspected to belong to it.
    thresholds = np.divide(sums, images, out=np.full(classes, np.inf), where=images > 0)
    suspected = ~classified.correct & (classified.confidence >= thresholds[classified.predicted])
    order = np.argsort(label_margins(classified), kind="stable")
    return np.asarray(order[suspected[order]])
