"""Measures a run's selected weights on the test images of its data, on every worker a share; training never does."""

from collections.abc import Callable
from dataclasses import replace

import torch

from resnet_ops.data.augment import Normalizer
from resnet_ops.data.loader import eval_batches, open_split
from resnet_ops.data.sources import Source
from resnet_ops.run_records import RunRecord
from resnet_ops.runs import Run
from resnet_ops.training.checkpoint import read_best
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.trainer import MeanLoss, evaluate_batches


def measure_test(
    run: Run,
    record: RunRecord,
    source: Source,
    group: ProcessGroup,
    device: torch.device,
    beat: Callable[[], None] = lambda: None,
) -> float | None:
    """Return the top-1 accuracy of the weights in best/, from 0 to 1; None where the data has no test images.

    Collective: every worker must call it, once the weights are written.
    """
    if not record.data.test_images:
        return None
    beat()
    checkpoint, _ = read_best(run)
    network = checkpoint.info.build_network().to(device)
    network.load_state_dict(checkpoint.model)
    images = open_split(replace(source, record=record.data, config=record.config), "test", device, run.log_event)
    normalizer = Normalizer(checkpoint.info.mean, checkpoint.info.std, device)
    batches = eval_batches(images, normalizer, group.rank, group.size, beat)
    share = evaluate_batches(network, batches, record.config, device, beat)
    return 1 - MeanLoss.of_evaluation(group.add(share.totals)).error
