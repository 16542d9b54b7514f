"""Make the pictures in docs/pictures: `make pictures`, about a minute on 2 cores."""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from resnet_ops.config import TrainConfig
from resnet_ops.runs import Epoch
from resnet_ops.training import job

PICTURES = Path(__file__).with_name("pictures")
DEPTHS = {20: "#0072b2", 56: "#d55e00"}  # told apart by the colour-blind, and in print by their lightness
EPOCHS = 15


def degradation() -> None:
    """Plain and residual networks on digits: error against epoch, as figure 6 of He et al. 2015."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, kind in zip(panels, ("plain", "resnet"), strict=True):
        for depth, color in DEPTHS.items():
            epochs = train(f"{kind}{depth}")
            numbers = [epoch.epoch for epoch in epochs]
            panel.plot(numbers, [100 * e.train_error for e in epochs], color=color, lw=1, ls="--")
            panel.plot(numbers, [100 * e.val_error for e in epochs], color=color, lw=2.2, label=f"{kind}{depth}")
            print(f"{kind}{depth}: validation error {epochs[-1].val_error:.1%}, training {epochs[-1].train_error:.1%}")
        panel.set(xlabel="epoch", xlim=(1, EPOCHS), ylim=(0, 100), title={"plain": "plain", "resnet": "residual"}[kind])
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper right")
    panels[0].set_ylabel("top-1 error, %")
    figure.supxlabel("thick: validation, dashed: training", fontsize=9, color="#555555")
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "degradation.png", dpi=150, metadata={"Software": None})


def train(model: str) -> list[Epoch]:
    """Train one network on digits, from seed 0."""
    with tempfile.TemporaryDirectory() as folder:
        return job.train(TrainConfig.of(model=model, epochs=EPOCHS, runs_dir=folder)).run.epochs()


if __name__ == "__main__":
    degradation()
