"""Augment and normalize whole batches on the device, from uint8 pixels; batches are made in loader.py.

What augments them is in crops.py, auto_augment.py, erasing.py and mixing.py; here is the order, torchvision's reference
recipes': crop and mirror, then operations on single images, normalize, erase, mix. Shapes: N images, H height, W width,
C channels, S and R height and width of a training image, K classes. Batches come in as (N, H, W, C) and leave as
(N, C, H, W) in channels_last memory, which on a CPU trains 1.25 times as fast as NCHW.

Random numbers are drawn on the CPU, so that the same generator gives the same images on every device, and apart from
the pixels: a batch's are a few small tensors of fixed shapes, which are drawn and sent for many batches at once. What
is done to the pixels follows from tensors on the device alone, so that CUDA can capture it in a graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_ops.data.auto_augment import draw_color_jitter, draw_rand_augment, draw_trivial_augment
from resnet_ops.data.crops import crop_and_flip, draw_boxes, draw_crops, random_resized_crop
from resnet_ops.data.erasing import cutout, draw_erased, draw_squares, erase
from resnet_ops.data.image_operations import apply_operations, jitter
from resnet_ops.data.mixing import draw_mixing, mix
from resnet_ops.data.sampling import Draws
from resnet_ops.recipe_config import Recipe, parse_rand_augment


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images; the defaults do nothing.

    Args:
        crop_padding: Pixels added on each side before a random crop.
        flip: Whether to mirror half of the images.
        random_resized_crop: Crop a random part and resize it, instead of padding and cropping.
        trivial_augment: Do one random operation to each image: TrivialAugment.
        rand_augment: How many random operations are done to each image, and their magnitude, 0 to 30: RandAugment.
        color_jitter: The most that the factors of brightness, contrast and saturation differ from 1.
        random_erasing: Probability that a random box of an image is blanked.
        cutout: Side in pixels of a square that is blanked.
        mixup: Alpha of mixup, or 0.
        cutmix: Alpha of CutMix, or 0; with mixup too, each batch gets one of them.
        classes: Number of classes, for labels that are mixed.
        size: Height and width of the augmented images; None for those of the images that come in.
    """

    crop_padding: int = 0
    flip: bool = False
    random_resized_crop: bool = False
    trivial_augment: bool = False
    rand_augment: tuple[int, int] | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, recipe: Recipe, classes: int, size: tuple[int, int] | None = None) -> "Augmentation":
        """Return the augmentation of a recipe whose padding and mirroring are decided."""
        return cls(
            crop_padding=recipe.crop_padding or 0,
            flip=bool(recipe.flip),
            random_resized_crop=recipe.random_resized_crop,
            trivial_augment=recipe.trivial_augment,
            rand_augment=parse_rand_augment(recipe.rand_augment) if recipe.rand_augment else None,
            color_jitter=recipe.color_jitter,
            random_erasing=recipe.random_erasing,
            cutout=recipe.cutout,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            classes=classes,
            size=size,
        )

    def draw(self, images: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw the random numbers of a batch.

        Args:
            images: N.
            size: H and W of the images that come in.
            generator: A CPU generator.

        Returns:
            CPU tensors, whose names and shapes depend on the augmentation and N alone.
        """
        size, cropped_from = self.output_size(size), size
        draws: dict[str, Tensor] = {}
        if self.random_resized_crop:
            draws |= draw_boxes(images, self.flip, generator)
        elif self._crops(cropped_from):
            draws |= draw_crops(images, cropped_from, size, self.crop_padding, self.flip, generator)
        if self.trivial_augment:
            draws |= draw_trivial_augment(images, size, generator)
        if self.rand_augment:
            draws |= draw_rand_augment(images, size, *self.rand_augment, generator)
        if self.color_jitter:
            draws |= draw_color_jitter(images, self.color_jitter, generator)
        if self.random_erasing:
            draws |= draw_erased(images, size, self.random_erasing, generator)
        if self.cutout:
            draws |= draw_squares(images, size, self.cutout, generator)
        if self.mixup or self.cutmix:
            draws |= draw_mixing(self.mixup, self.cutmix, size, generator)
        return draws

    def __call__(
        self, x: Tensor, y: Tensor, draws: Draws, normalizer: "Normalizer", aspects: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment and normalize a batch.

        Args:
            x: (N, H, W, C) uint8.
            y: (N,) int64.
            draws: The batch's random numbers, on the same device.
            normalizer: That of the dataset.
            aspects: (N,) float32, width / height of images that were resized to another; None where none were.

        Returns:
            (N, C, S, R) float32, channels_last, and labels: (N,) int64, or (N, K) float32 where
            images are mixed.
        """
        came_in = (x.shape[1], x.shape[2])
        size = self.output_size(came_in)
        if self.random_resized_crop:
            x = random_resized_crop(x, draws, size, aspects)
        elif self._crops(came_in):
            x = crop_and_flip(x, draws["corners"], draws["mirrored"], self.crop_padding, size)
        if self.trivial_augment or self.rand_augment:
            x = apply_operations(x, draws["operations"], draws["magnitudes"], draws["maps"])
        if self.color_jitter:
            x = jitter(x, draws["jitter_order"], draws["jitter"])
        x = normalizer(x)
        if self.random_erasing:
            x = erase(x, draws["erased"])
        if self.cutout:
            x = cutout(x, draws["squares"], self.cutout)
        if self.mixup or self.cutmix:
            shares = (y[:, None] == torch.arange(self.classes, device=y.device)).to(x.dtype)
            return mix(x, shares, draws)
        return x, y

    def _crops(self, size: tuple[int, int]) -> bool:
        return bool(self.crop_padding or self.flip or self.size not in (None, size))

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the augmented images, of those that come in."""
        return self.size or size


class Normalizer:
    """Maps pixels to `(x / 255 - mean) / std`; its constants are sent to the device once.

    Args:
        mean: Per channel, of pixels from 0 to 1.
        std: Per channel, of the same scale.
        device: That of the pixels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        constants = torch.tensor([mean, std], dtype=torch.float32) * 255
        self.shift, self.scale = constants.to(device)
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize images.

        Args:
            x: (N, H, W, C) uint8, or float32, which is changed in place.

        Returns:
            (N, C, H, W) float32, channels_last.
        """
        n, h, w, c = x.shape
        if w not in self._rows:
            # Over whole rows of pixels: over the 1 or 3 channels alone it is 4 times as slow on a CPU.
            self._rows[w] = (self.shift.repeat(w), self.scale.repeat(w))
        shift, scale = self._rows[w]
        rows = x.reshape(n, h, w * c).to(torch.float32).sub_(shift).div_(scale)
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalize images (N, H, W, C) as a `Normalizer` of these constants does."""
    return Normalizer(mean, std, x.device)(x)


def pixel_statistics(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, on the scale 0 to 1; exact.

    A constant channel has deviation 1, so that normalizing it gives zeros.

    Args:
        counts: How often each value occurs in each channel, (C, 256).
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in torch.from_numpy(counts).to(torch.float64):
        mean = (channel @ values / channel.sum()).item()
        deviation = (channel @ (values - mean).square() / channel.sum()).sqrt().item()
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)
