"""The images of a training before it begins: the same on every node, decoded, or, where they are streamed, sampled.

Imports torch only within functions: images that are not the same on all nodes are refused before.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data.dataset import SPLIT_NAMES
from resnet_ops.data.opening import fingerprint_of
from resnet_ops.data.parallel_decode import Report, do_not_report
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.formatting import first_names, size
from resnet_ops.machine import memory_bytes
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.shared_storage import probe_nodes
from resnet_ops.training.observer import Observer
from resnet_ops.training.preflight import settle_batch_size


@contextlib.contextmanager
def check_every_node(nodes: Sequence[Node], folder: Path, config: DataConfig) -> Iterator[Callable[[str], None]]:
    """Have each of `nodes` check the run's folder and the images while the `with` block goes on.

    Yields:
        A function that waits for the nodes and compares their images' fingerprints with the given one.

    Raises:
        UserError: A node does not see the folder, or sees other images.
    """
    if not nodes:
        yield lambda _: None
        return
    with probe_nodes(nodes, folder, fingerprint_of, config) as answers:

        def compare(fingerprint: str) -> None:
            for node, seen_there in answers().items():
                if seen_there != fingerprint:
                    raise UserError(
                        f"The images in {config.data} on {node.name} differ from those on this machine.",
                        "Provide the same images on every node.",
                    )

        yield compare


def decode_images(source: Source, config: TrainConfig, observer: Observer) -> Source:
    """Decode the images on this machine, so that the run's record can list bad ones.

    Of images that will be streamed, decode only a sample, for their mean and standard deviation.
    """
    source = replace(source, whole=config.random_resized_crop, report=_report_to(observer))
    if config.stream == "on":
        source = _sampled(source, observer)
    else:
        if not source.embedded:
            observer.progress({"stage": f"Decoding the images of {source.record.name}"})
        source = source.prepare()
        for note in source.notes:
            observer.warn(note)
        settle_batch_size(config, source.record)  # some may have been left out
    if unseen := source.not_validated:
        observer.warn(f"Not validated: {first_names(unseen)}: no validation images; add images, or remove the class.")
    return replace(source, report=do_not_report)


def with_sampled_statistics(source: Source) -> Source:
    """Measure mean and standard deviation of the pixels of images that are streamed on a sample of them.

    Not where pretrained weights have theirs.
    """
    if source.record.mean is not None:
        return source
    from resnet_ops.data.augment import pixel_statistics

    mean, std = pixel_statistics(source.sample_counts())
    return replace(source, record=source.record.model_copy(update={"mean": mean, "std": std}))


def _report_to(observer: Observer) -> Report:
    """Return a function that reports to an observer how many images have been read or decoded, and how fast."""
    began: dict[tuple[str, int], float] = {}

    def report(stage: str, done: int, images: int) -> None:
        now = time.monotonic()
        elapsed_s = now - began.setdefault((stage, images), now)
        rate = done / elapsed_s if elapsed_s else None
        observer.progress({"stage": stage, "done": done, "images": images, "images_per_second": rate})

    return report


def _sampled(source: Source, observer: Observer) -> Source:
    read = ""
    if source.left_out:
        splits = " and a ".join(f"{SPLIT_NAMES[split]} split" for split in source.left_out)
        avoided = "; --val-data avoids that" if source.left_out == ("val",) else ""
        read = f" All are read once now to hold out a {splits}{avoided}."
    for note in (*source.notes, *source.check_test_images(), *source.check_labels()):
        observer.warn(note)
    observer.warn(
        f"Streaming: decoded, the training images take {size(source.decoded_bytes)}; this machine has "
        f"{size(memory_bytes())} of memory.{read}"
    )
    observer.progress({"stage": f"Sampling the images of {source.record.name}"})
    return with_sampled_statistics(source.with_exact_counts())
