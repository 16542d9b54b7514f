"""What He et al. 2015 (arXiv 1512.03385) published, to put beside trainings on their data with their recipe."""

from dataclasses import dataclass

from resnet_ops.config import TrainConfig
from resnet_ops.runs import DataRecord

# Test error on CIFAR-10, table 6; of ResNet-110 the mean of five. Plain networks are drawn only (fig. 6): plain-110
# stays above 60 %.
TABLE_6 = {
    "resnet20": 0.0875, "resnet32": 0.0751, "resnet44": 0.0717, "resnet56": 0.0697, "resnet110": 0.0661,
    "resnet1202": 0.0793,
}  # fmt: skip
# Top-1 error on ImageNet's validation images, 10-crop, tables 2 and 3; by network and shortcut.
TABLE_2 = {"plain18": 0.2794, "resnet18": 0.2788, "plain34": 0.2854, "resnet34": 0.2503}
TABLE_3 = {"A": 0.2503, "B": 0.2452, "C": 0.2419}
CIFAR_10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
IMAGENET = (1000, 50_000)  # classes and validation images


@dataclass(frozen=True)
class Published:
    """Errors from 0 to 1 by network, or by network and shortcut, and where they are from."""

    source: str
    errors: dict[tuple[str, str | None], float]

    def error(self, model: str, shortcut: str | None) -> float | None:
        """What was published of a network with these shortcuts (None for a plain one)."""
        return self.errors.get((model, shortcut))


def published(data: DataRecord, config: TrainConfig) -> Published | None:
    """The numbers that trainings like these can be put beside; None where images or recipe are not the paper's."""
    if _is_cifar10(data) and config.recipe == "paper" and _as_recipe(config, epochs=164, batch_size=128):
        errors: dict[tuple[str, str | None], float] = {(model, "A"): error for model, error in TABLE_6.items()}
        return Published(
            "He et al. 2015, table 6, test error; plain networks appear only in fig. 6, plain110 above 60%",
            errors,
        )
    if (len(data.class_names), data.val_images) == IMAGENET and _as_recipe(config, epochs=90, batch_size=256):
        errors = {("resnet34", shortcut): error for shortcut, error in TABLE_3.items()}
        errors |= {("plain18", None): TABLE_2["plain18"], ("plain34", None): TABLE_2["plain34"]}
        errors[("resnet18", "A")] = TABLE_2["resnet18"]
        return Published(
            "He et al. 2015, tables 2 and 3: 10-crop testing; here a single crop and different augmentation", errors
        )
    return None


def _is_cifar10(data: DataRecord) -> bool:
    return set(data.class_names) == CIFAR_10 and data.val_images == 10_000 and not data.stored and data.height == 32


def _as_recipe(config: TrainConfig, epochs: int, batch_size: int) -> bool:
    """Whether what makes the recipe is as the paper has it, or, of epochs, no less."""
    steps = (config.schedule, config.lr, config.lr_decay, config.momentum, config.weight_decay)
    return config.epochs >= epochs and config.batch_size == batch_size and steps == ("steps", 0.1, 0.1, 0.9, 1e-4)
