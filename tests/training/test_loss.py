"""The loss is torch's, weighted as scikit-learn and focal as torchvision have it; rare classes are found with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from resnet_ops.config import TrainConfig
from resnet_ops.data import stream
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.training.build import build_trainer
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.loss import Loss, weigh_classes
from resnet_ops.training.preflight import check_training
from resnet_ops.training.trainer import Trainer
from tests.data.samples import noise, write_parquet

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "emu")
LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 6)


def logits(n: int = len(LABELS), classes: int = 3) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(0))


def weights(labels: Tensor = LABELS, **options: Any) -> Tensor:
    found = weigh_classes(TrainConfig.of(**options), NAMES, labels)
    assert found is not None
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spec", ["balanced", "cat=2,dog=0.5", "dog = 1e3"])
def test_over_an_epoch_the_mean_is_torchs_weighted_mean(spec: str, smoothing: float) -> None:
    theirs = torch.ones(3)
    if spec == "balanced":
        theirs = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())).float()
    for part in spec.split(",") if "=" in spec else ():
        theirs[NAMES.index(part.split("=")[0].strip())] = float(part.split("=")[1])
    x = logits()
    expected = F.cross_entropy(x, LABELS, theirs, label_smoothing=smoothing)
    loss = Loss(weights(class_weights=spec), smoothing)
    parts = zip(x.split(7), LABELS.split(7), strict=True)  # as workers and micro-batches have them
    assert sum(loss(*part) for part in parts) / len(x) == pytest.approx(expected.item(), rel=1e-5)
    shares = F.one_hot(LABELS, 3).float()  # as MixUp has them: torch's are divided by the number of images then, too
    torch.testing.assert_close(loss(x, shares), loss(x, LABELS), rtol=1e-5, atol=0)


def test_weights_of_classes_without_images_and_beside_the_balanced_sampler() -> None:
    """A class without images changes nothing; with the sampler, all classes are trained on equally often."""
    without = weights(torch.tensor([0, 0, 0, 1]), class_weights="balanced")
    assert without.tolist() == pytest.approx([4 / 6, 2, 1])
    both = weights(sampler="balanced", class_weights="cat=4")
    assert both.tolist() == pytest.approx([2, 0.5, 0.5])
    for off in (None, "none"):
        assert weigh_classes(TrainConfig.of(class_weights=off), NAMES, LABELS) is None


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_of_two_classes_is_torchvisions(gamma: float) -> None:
    """A softmax over (0, x) is a sigmoid of x."""
    x, y = logits(50, 1)[:, 0].requires_grad_(), torch.arange(50) % 2
    theirs = sigmoid_focal_loss(x, y.float(), alpha=-1, gamma=gamma, reduction="sum")
    (their_gradient,) = torch.autograd.grad(theirs, x)
    ours = Loss(focal_gamma=gamma)(torch.stack((torch.zeros(50), x), 1), y)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.autograd.grad(ours, x)[0], their_gradient, rtol=1e-4, atol=1e-6)


def test_focal_loss_weighs_mixes_and_smooths() -> None:
    x, y, w = logits(), F.one_hot(LABELS, 3).float().lerp(torch.full((len(LABELS), 3), 1 / 3), 0.3), torch.rand(3)
    p = torch.softmax(x.double(), 1)
    smooth = 0.9 * y.double() + 0.1 / 3
    expected = -(w.double() * smooth * (1 - p) ** 2 * p.log()).sum()
    assert Loss(w, 0.1, 2.0)(x, y).item() == pytest.approx(expected.item(), rel=1e-5)
    nearly = Loss(w, 0.1, 1e-7)(x, y).item()  # by the other formula
    assert nearly == pytest.approx(F.cross_entropy(x, y, w, reduction="sum", label_smoothing=0.1).item(), rel=1e-5)


def test_focal_loss_has_a_gradient_where_all_is_certain() -> None:
    x = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    Loss(focal_gamma=0.5)(x, torch.tensor([0, 0])).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0].abs().max() < 1e-6
    assert x.grad[1].tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_shares_of_two_workers_and_their_micro_batches_add_up_to_the_batch(mixup: float) -> None:
    config = TrainConfig.of(
        model="resnet8", accumulate=3, label_smoothing=0.1, focal_gamma=1.5, class_weights="balanced", batch_size=32
    )
    pixels = torch.randint(0, 256, (96, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    split, augmentation = DeviceImages(pixels, LABELS), Augmentation(mixup=mixup, classes=3)
    w = weights(class_weights="balanced")
    added, losses = [], 0.0
    parts: list[tuple[Tensor, Tensor]] = []
    for rank in (0, 1):
        torch.manual_seed(0)
        network = build("resnet8", num_classes=3, in_channels=1).eval()  # BatchNorm sees each micro-batch for itself
        loader = Loader(split, split, (0.5,), (0.2,), 32, augmentation, 0, rank, 2)
        trainer = build_trainer(config, network, loader, ProcessGroup(rank, 2), CPU, class_weights=w)
        parts.append(next(loader.train_batches(0)))
        trainer.inputs.load(next(loader.blocks(0)).columns)
        trainer.compute_gradients()
        added.append([p.grad for p in network.parameters()])
        losses += trainer.totals[0].item()
    x, y = (torch.cat(each) for each in zip(*parts, strict=True))
    shares = 0.9 * (y if mixup else F.one_hot(y, 3).float()) + 0.1 / 3
    p = torch.softmax(network(x), 1)
    loss = -(w * shares * (1 - p) ** 1.5 * p.log()).sum() / 32
    assert losses / 32 == pytest.approx(loss.item(), rel=1e-5)
    for one, other, whole in zip(*added, torch.autograd.grad(loss, list(network.parameters())), strict=True):
        torch.testing.assert_close(one + other, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "cause", "remedy"),
    [
        ({"class_weights": "1=2,12=3"}, "digits has no class '12'", "Its classes: 0, 1, 2"),
        ({"class_weights": "even"}, "must be balanced, none, or CLASS=WEIGHT", ""),
        ({"class_weights": "1=0"}, "must be balanced, none, or CLASS=WEIGHT,... with positive weights", ""),
        ({"class_weights": "1=2,1=3"}, "must be balanced", ""),
        ({"class_weights": "1=nan"}, "must be balanced", ""),
        ({"focal_gamma": -1}, "--focal-gamma should be greater than or equal to 0", ""),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(options: dict[str, Any], cause: str, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        check_training(TrainConfig.of(**options), "cpu", open_source("digits"))
    assert cause in error.value.cause
    assert remedy in error.value.remedy


RARE = 0


def imbalanced(loader: Loader, **options: Any) -> Trainer:
    """Train on 300 digits that are no zeros, and 3 that are."""
    train = loader.train
    assert isinstance(train, DeviceImages)
    is_rare = train.labels == RARE
    rows = torch.cat(((~is_rare).nonzero()[:300, 0], is_rare.nonzero()[:3, 0]))
    few = DeviceImages(train.pixels[rows], (train.labels[rows] == RARE).long())
    val = loader.val
    assert isinstance(val, DeviceImages)
    val = DeviceImages(val.pixels, (val.labels == RARE).long())
    config = TrainConfig.of(model="resnet8", epochs=6, batch_size=32, lr=0.03, **options)
    loader = replace(loader, train=few, val=val, batch_size=32, balanced=config.sampler == "balanced")
    torch.manual_seed(0)
    network = build("resnet8", num_classes=2, in_channels=1)
    found = weigh_classes(config, ("other", "zero"), few.labels)
    return build_trainer(config, network, loader, ProcessGroup(), CPU, class_weights=found)


def test_balanced_training_finds_a_class_of_one_in_a_hundred() -> None:
    loader = open_loader(open_source("digits"), CPU, batch_size=32, augmentation=Augmentation(1), seed=0)
    recalls = {}
    for name, options in {
        "as it comes": {},
        "weights": {"class_weights": "balanced"},
        "sampler": {"sampler": "balanced"},
    }.items():
        trainer = imbalanced(loader, **options)
        list(trainer.run(lambda _: None))
        network = trainer.eval_network.eval()
        with torch.no_grad():
            found = [(network(x).argmax(1), y) for x, y in trainer.loader.val_batches()]
        predicted, true = (torch.cat(each).numpy() for each in zip(*found, strict=True))
        recalls[name] = recall_score(true, predicted)
    # Of four seeds: 0 as it comes, with weights 0.44 to 1, with the sampler 0.97 to 1.
    assert recalls["weights"] > recalls["as it comes"] + 0.3
    assert recalls["sampler"] > recalls["as it comes"] + 0.6


def test_rare_images_are_not_looked_for_in_all_of_a_streamed_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "table.parquet", noise(40), [0, 1] * 20)
    monkeypatch.setattr(stream, "FULL_SHUFFLE_BYTES", 0)  # of tables that are mixed as a whole
    config = TrainConfig.of(data=str(tmp_path / "table.parquet"), sampler="balanced", batch_size=8, stream="on")
    with pytest.raises(UserError, match="streamed, a part at a time") as error:
        check_training(config, "cpu")
    assert "--class-weights balanced" in error.value.remedy
    check_training(config.model_copy(update={"stream": "off"}), "cpu")
