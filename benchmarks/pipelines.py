"""Images/s of one core that pads, crops, mirrors and normalizes: PIL, torchvision's tensors, resnet-ops.

    python benchmarks/pipelines.py [--runs 5]

From decoded uint8 images in memory to a normalized float batch; one thread, in turn. Writes
benchmarks/results/pipelines.md and .json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from record import Floor, Row, in_turn, ratio, write
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from resnet_ops.data.augment import Augmentation, Normalizer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PIL, V2, OURS = "PIL transforms, image by image", "torchvision v2 on tensors, image by image", "resnet-ops, by batch"
BATCHES = {32: (128, 32), 224: (16, 16)}  # images in one, and how many: a measure should take about a second
ABOUT = """
Pad by an eighth and crop, mirror, normalize: from decoded uint8 images in memory to a float batch, on one thread.
Ratios: over the PIL transforms.
"""
Pipeline = Callable[[Tensor], Tensor]


def pipelines(side: int) -> dict[str, Pipeline]:
    """From (N, H, W, C) uint8 to (N, C, H, W) float32."""
    crop = {"size": side, "padding": side // 8}
    by_pil = transforms.Compose(
        [
            transforms.RandomCrop(**crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    by_v2 = v2.Compose(
        [
            v2.RandomCrop(**crop),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    generator, labels = torch.Generator().manual_seed(0), torch.zeros(BATCHES[side][0], dtype=torch.int64)
    augmentation, normalizer = Augmentation(side // 8, flip=True), Normalizer(MEAN, STD, torch.device("cpu"))

    def ours(x: Tensor) -> Tensor:
        return augmentation(x, labels[: len(x)], augmentation.draw(len(x), (side, side), generator), normalizer)[0]

    return {
        PIL: lambda x: torch.stack([by_pil(Image.fromarray(one)) for one in x.numpy()]),
        V2: lambda x: torch.stack([by_v2(one) for one in x.permute(0, 3, 1, 2)]),
        OURS: ours,
    }


def images_per_second(pipeline: Pipeline, x: Tensor, batches: int) -> float:
    """Of some batches after a first one."""
    assert pipeline(x).shape == (len(x), 3, *x.shape[1:3])
    started = time.perf_counter()
    for _ in range(batches):
        pipeline(x)
    return batches * len(x) / (time.perf_counter() - started)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[Row] = []
    floors = []
    for side, (batch, batches) in BATCHES.items():
        x = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
        measures = {
            name: partial(images_per_second, pipeline, x, batches * (5 if name == OURS else 1))
            for name, pipeline in pipelines(side).items()
        }
        found = in_turn(measures, options.runs)
        rows += [
            {
                "images": f"{side}x{side}, batch {batch}",
                "": name,
                "images/s per core": statistics.median(rates),
                "ratio": None if name == PIL else ratio(rates, found[PIL]),
                "each": rates,
            }
            for name, rates in found.items()
        ]
        if side == 32:
            floors.append(Floor("resnet-ops over PIL at 32x32", 6, ratio(found[OURS], found[PIL])))
    write("pipelines", "Data pipelines", ABOUT, rows, floors, options.runs, "torchvision", "pillow")


if __name__ == "__main__":
    main()
