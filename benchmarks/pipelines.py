"""Images/s of one core that crops, mirrors and normalizes: PIL, torchvision's tensors, resnet-ops.

    python benchmarks/pipelines.py [--runs 5]

From decoded uint8 images in memory to a normalized float batch; one thread, in turn. Writes
benchmarks/results/pipelines.md and .json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

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
STORED, RESIZED = 256, 224  # sides of images that random resized crops are from, and of these crops
ABOUT = """
Crop, mirror, normalize: from decoded uint8 images in memory to a float batch, on one thread. Crops are of images padded
by an eighth, or random resized crops of 256x256 to 224x224. Ratios: over the PIL transforms.

Where the images name them, operations are done between mirroring and normalizing, or after it boxes are erased: as
torchvision's TrivialAugmentWide, RandAugment of 2 operations of magnitude 9, ColorJitter of 0.4 (brightness, contrast,
saturation) and RandomErasing of every fourth image do. Each with padded crops.
"""
Pipeline = Callable[[Tensor], Tensor]


def padded_crops(side: int) -> dict[str, Pipeline]:
    """From (N, H, W, C) uint8 to (N, C, H, W) float32."""
    return {
        **by_torchvision(transforms.RandomCrop(side, side // 8), v2.RandomCrop(side, side // 8)),
        OURS: by_batch(Augmentation(side // 8, flip=True)),
    }


def resized_crops() -> dict[str, Pipeline]:
    """From (N, H, W, C) uint8 to (N, C, S, S) float32."""
    size = (RESIZED, RESIZED)
    return {
        **by_torchvision(transforms.RandomResizedCrop(size), v2.RandomResizedCrop(size)),
        OURS: by_batch(Augmentation(flip=True, random_resized_crop=True, size=(RESIZED, RESIZED))),
    }


POLICIES: dict[str, tuple[dict[str, Any], v2.Transform]] = {
    "TrivialAugment": ({"trivial_augment": True}, v2.TrivialAugmentWide()),
    "RandAugment": ({"rand_augment": (2, 9)}, v2.RandAugment(2, 9)),
    "color jitter": ({"color_jitter": 0.4}, v2.ColorJitter(0.4, 0.4, 0.4)),
    "random erasing": ({"random_erasing": 0.25}, v2.RandomErasing(0.25)),
}


def augmented(side: int, policy: str) -> dict[str, Pipeline]:
    """From (N, H, W, C) uint8 to (N, C, H, W) float32, by crops and one more augmentation."""
    options, theirs = POLICIES[policy]
    return {
        **by_torchvision(transforms.RandomCrop(side, side // 8), v2.RandomCrop(side, side // 8), theirs),
        OURS: by_batch(Augmentation(side // 8, flip=True, **options)),
    }


def by_batch(augmentation: Augmentation) -> Pipeline:
    """Augment and normalize batches as training does."""
    generator, normalizer = torch.Generator().manual_seed(0), Normalizer(MEAN, STD, torch.device("cpu"))

    def pipeline(x: Tensor) -> Tensor:
        draws = augmentation.draw(len(x), (x.shape[1], x.shape[2]), generator)
        return augmentation(x, torch.zeros(len(x), dtype=torch.int64), draws, normalizer)[0]

    return pipeline


def by_torchvision(
    pil_crop: torch.nn.Module, v2_crop: torch.nn.Module, policy: v2.Transform | None = None
) -> dict[str, Pipeline]:
    """Crop, mirror and normalize image by image, and apply a policy where its images are pixels, or normalized."""
    erasing = isinstance(policy, v2.RandomErasing)
    before, after = ([policy] if policy and erases == erasing else [] for erases in (False, True))
    by_pil = transforms.Compose(
        [
            *(pil_crop, transforms.RandomHorizontalFlip(), *before),
            *(transforms.ToTensor(), transforms.Normalize(MEAN, STD), *after),
        ]
    )
    by_v2 = v2.Compose(
        [
            *(v2_crop, v2.RandomHorizontalFlip(), *before),
            *(v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), *after),
        ]
    )
    return {
        PIL: lambda x: torch.stack([by_pil(Image.fromarray(one)) for one in x.numpy()]),
        V2: lambda x: torch.stack([by_v2(one) for one in x.permute(0, 3, 1, 2)]),
    }


def images_per_second(pipeline: Pipeline, x: Tensor, side: int, batches: int) -> float:
    """Of some batches after a first one."""
    assert pipeline(x).shape == (len(x), 3, side, side)
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
    for what, made, stored, side in (
        *((f"{side}x{side}", padded_crops(side), side, side) for side in BATCHES),
        (f"{STORED}x{STORED}, resized to {RESIZED}x{RESIZED}", resized_crops(), STORED, RESIZED),
        *((f"{side}x{side}, {policy}", augmented(side, policy), side, side) for side in BATCHES for policy in POLICIES),
    ):
        batch, batches = BATCHES[side]
        x = torch.randint(0, 256, (batch, stored, stored, 3), dtype=torch.uint8)
        measures = {
            name: partial(images_per_second, pipeline, x, side, batches * (5 if name == OURS else 1))
            for name, pipeline in made.items()
        }
        found = in_turn(measures, options.runs)
        rows += [
            {
                "images": f"{what}, batch {batch}",
                "": name,
                "images/s per core": statistics.median(rates),
                "ratio": None if name == PIL else ratio(rates, found[PIL]),
                "each": rates,
            }
            for name, rates in found.items()
        ]
        if what in [f"{side}x{side}, {policy}" for side in BATCHES for policy in POLICIES]:
            floors.append(Floor(f"resnet-ops over torchvision v2, {what}", 1, ratio(found[OURS], found[V2])))
        if what == "32x32":
            floors.append(Floor("resnet-ops over PIL at 32x32", 6, ratio(found[OURS], found[PIL])))
        if stored != side:
            floors.append(Floor("resnet-ops over torchvision v2, resized crops", 1, ratio(found[OURS], found[V2])))
    write("pipelines", "Data pipelines", ABOUT, rows, floors, options.runs, "torchvision", "pillow")


if __name__ == "__main__":
    main()
