"""The training loops that others write, each a script of its own, on the networks of resnet-ops.

    python benchmarks/peers.py tutorial FOLDER METRICS --model resnet20 --batch-size 128 --epochs 3

FOLDER is one that images.py made; METRICS gets images/s, an epoch a line. An epoch's clock starts
when its first batch is there, which favors loops that start workers for each epoch, and stops
when its last step is done. All validate after each epoch, outside of that clock.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from resnet_ops.machine import cores
from resnet_ops.models import build

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
LOADER_WORKERS = 2
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Work:
    """What to train, and where to say how fast."""

    folder: Path
    metrics: Path
    model: str
    batch_size: int
    epochs: int

    @property
    def device(self) -> torch.device:
        """The GPU, where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, H, W, C) uint8 and labels (N,) of `train` or `test`."""
        with np.load(self.folder / f"{split}.npz") as file:
            return file["pixels"], file["labels"]

    def network(self) -> nn.Module:
        """A fresh network on the device."""
        torch.manual_seed(0)
        return build(self.model, num_classes=10).to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 on GPUs, for loops whose authors would ask for it."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()

    def clocked(self, batches: Batches, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, with the clock running."""
        clock = Clock(self, steps)
        for step, batch in enumerate(batches):
            if step == 0:
                clock.start()
            yield batch
            if step == steps - 1:
                clock.stop()


class Clock:
    """Times an epoch."""

    def __init__(self, work: Work, steps: int) -> None:
        self.work, self.images = work, steps * work.batch_size

    def start(self) -> None:
        """The first batch is there."""
        self.started = self._now()

    def stop(self) -> None:
        """The last step is done."""
        rate = self.images / (self._now() - self.started)
        with self.work.metrics.open("a") as file:
            file.write(json.dumps({"images_per_second": rate}) + "\n")

    def _now(self) -> float:
        if self.work.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class PilImages(torch.utils.data.Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR10: arrays in memory, made PIL images one by one."""

    def __init__(self, work: Work, split: str, transform: Callable[[Image.Image], Any] | None) -> None:
        self.pixels, self.labels = work.arrays(split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """One image, transformed, and its label."""
        image = Image.fromarray(self.pixels[index])
        return self.transform(image) if self.transform else image, int(self.labels[index])


def pil_loaders(work: Work, **options: Any) -> tuple[Any, Any]:
    """DataLoaders for training and for validation, with torchvision's transforms."""
    from torchvision import transforms

    training = PilImages(work, "train", None)
    side = training.pixels.shape[1]
    as_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop_and_flip = [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
    training.transform = transforms.Compose(crop_and_flip + as_tensor)
    validation = PilImages(work, "val", transforms.Compose(as_tensor))
    options = {"batch_size": work.batch_size, "num_workers": LOADER_WORKERS} | options
    return (
        torch.utils.data.DataLoader(training, shuffle=True, drop_last=True, **options),
        torch.utils.data.DataLoader(validation, **options),
    )


@torch.no_grad()
def validate(network: nn.Module, batches: Batches, device: torch.device) -> float:
    """Top-1 accuracy."""
    network.eval()
    right = total = 0
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        right += (network(x).argmax(1) == y).sum().item()
        total += len(y)
    return right / total


def tutorial(work: Work) -> None:
    """PyTorch's own CIFAR-10 tutorial, with its examples' augmentation: what most people begin with."""
    loader, validation = pil_loaders(work)
    device, network = work.device, work.network()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for epoch in range(work.epochs):
        network.train()
        running_loss = 0.0
        for inputs, labels in work.clocked(loader, len(loader)):
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        print(f"epoch {epoch + 1}: loss {running_loss / len(loader):.3f}, {validate(network, validation, device):.2%}")


def bare(work: Work) -> None:
    """The fastest plain loop: the step and the augmentation of resnet-ops, nothing watched, nothing kept."""
    from resnet_ops.data.augment import Augmentation, Normalizer

    torch.set_num_threads(cores())
    device, network = work.device, work.network().to(memory_format=torch.channels_last)
    splits = [tuple(torch.from_numpy(a).to(device) for a in work.arrays(split)) for split in ("train", "val")]
    (pixels, labels), validation = splits
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    generator, normalizer = torch.Generator().manual_seed(0), Normalizer(MEAN, STD, device)
    side = pixels.shape[1]
    augmentation = Augmentation(side // 8, flip=True)
    steps = len(labels) // work.batch_size

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=generator).to(device)
        for chosen in order[: steps * work.batch_size].split(work.batch_size):
            draws = augmentation.draw(len(chosen), (side, side), generator)
            sent = {name: drawn.to(device, non_blocking=True) for name, drawn in draws.items()}
            yield augmentation(pixels[chosen], labels[chosen], sent, normalizer)

    for _ in range(work.epochs):
        network.train()
        for x, y in work.clocked(batches(), steps):
            with work.autocast():
                logits = network(x)
            F.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        whole = zip(*(tensor.split(500) for tensor in validation), strict=True)
        validate(network, ((normalizer(x), y) for x, y in whole), device)


def lightning(work: Work) -> None:
    """PyTorch Lightning with its Trainer's defaults: progress bar, logger and checkpoints."""
    import pytorch_lightning as pl

    loader, validation = pil_loaders(work)

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = work.network()
            self.clock = Clock(work, len(loader))

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            x, y = batch
            self.log("val_accuracy", (self.network(x).argmax(1) == y).float().mean(), prog_bar=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

        def on_train_batch_start(self, _: Any, index: int) -> None:
            if index == 0:
                self.clock.start()

        def on_train_batch_end(self, _: Any, __: Any, index: int) -> None:
            if index == len(loader) - 1:
                self.clock.stop()

    precision: Any = "bf16-mixed" if work.device.type == "cuda" else "32-true"
    pl.Trainer(
        max_epochs=work.epochs, accelerator="auto", devices=1, precision=precision, default_root_dir=work.metrics.parent
    ).fit(Classifier(), loader, validation)


def timm(work: Work) -> None:
    """The loader, optimizer, schedule and checkpoints, of timm, joined as its train.py joins them."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, CheckpointSaver
    from torchvision import transforms

    device, network = work.device, work.network()
    datasets = [PilImages(work, split, None) for split in ("train", "val")]
    side = datasets[0].pixels.shape[1]
    loader, validation = (
        create_loader(
            dataset, input_size=(3, side, side), batch_size=work.batch_size, is_training=training, device=device,
            mean=MEAN, std=STD, num_workers=LOADER_WORKERS, crop_pct=1.0,
        )
        for dataset, training in zip(datasets, (True, False), strict=True)
    )  # fmt: skip
    # Its default augmentation, resized crops with color jitter, is dearer; the last one, to uint8, is its own.
    crop_and_flip = [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
    datasets[0].transform = transforms.Compose([*crop_and_flip, datasets[0].transform.transforms[-1]])
    optimizer = create_optimizer_v2(network, opt="sgd", lr=LR, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM)
    steps = len(loader)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=work.epochs, updates_per_epoch=steps, step_on_epochs=False
    )
    saver = CheckpointSaver(network, optimizer, checkpoint_dir=str(work.metrics.parent))
    loss_function = nn.CrossEntropyLoss().to(device)
    for epoch in range(work.epochs):
        network.train()
        losses = AverageMeter()
        for step, (x, y) in enumerate(work.clocked(loader, steps)):
            with work.autocast():
                loss = loss_function(network(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), x.size(0))
            schedule.step_update(epoch * steps + step + 1, metric=losses.avg)
        saver.save_checkpoint(epoch, metric=validate(network, validation, device))


PEERS = {loop.__name__: loop for loop in (bare, tutorial, lightning, timm)}


def main() -> None:
    """Train as one of them does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    options = vars(parser.parse_args())
    PEERS[options.pop("peer")](Work(**options))


if __name__ == "__main__":
    main()
