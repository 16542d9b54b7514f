"""The loop does what plain PyTorch would, and its metrics are exact."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.loader import Loader, open_loader
from resnet_ops.data.sources import open_source
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.training.loop import Progress, Training, World, prepare
from resnet_ops.training.schedule import learning_rate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Loader:
    return open_loader(open_source("digits"), CPU, batch_size=128, crop_padding=1, flip=False, seed=0)


def training(loader: Loader, **options: object) -> Training:
    config = TrainConfig.of(model="resnet8", epochs=2, **options)
    torch.manual_seed(0)
    return prepare(config, build("resnet8", num_classes=10, in_channels=1), loader, World(), CPU)


def ignore(_: Progress) -> None:
    pass


def test_a_step_is_plain_pytorchs(digits: Loader) -> None:
    ours = training(digits, weight_decay=1e-3)
    torch.manual_seed(0)
    theirs = build("resnet8", num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    loss_sum = errors = 0.0
    for step, (x, y) in enumerate(digits.train_batches(0)):
        optimizer.param_groups[0]["lr"] = learning_rate(ours.config, step, 2 * digits.steps)
        optimizer.zero_grad()
        logits = theirs(x)
        loss = nn.CrossEntropyLoss()(logits, y)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(y)
        errors += (logits.argmax(1) != y).sum().item()
    metrics = next(ours.run(ignore))
    assert metrics is not None
    seen = digits.steps * 128
    assert metrics.train_loss == pytest.approx(loss_sum / seen, rel=1e-5)
    assert metrics.train_error == pytest.approx(errors / seen, abs=1 / seen)
    for (name, our), their in zip(ours.network.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4, msg=name)


def test_validation_metrics_are_scikit_learns(digits: Loader) -> None:
    from sklearn.metrics import accuracy_score, log_loss

    trained = training(digits)
    (epoch, *_) = list(trained.run(ignore))
    assert epoch.epoch == 1
    val = trained.evaluate()
    x, y = next(iter(digits.val_batches()))
    with torch.no_grad():
        probabilities = trained.network.eval()(x).double().softmax(1).numpy()
    assert val.error == pytest.approx(1 - accuracy_score(y, probabilities.argmax(1)))
    assert val.loss == pytest.approx(log_loss(y, probabilities, labels=range(10)), rel=1e-5)
    assert len(load_digits().target) == len(digits.train) + len(digits.val)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_shares_of_the_validation_set_add_up_to_the_whole(digits: Loader, world_size: int) -> None:
    whole = training(digits)
    expected = whole.evaluate()
    loss = error = 0.0
    for rank in range(world_size):
        share = replace(whole, loader=replace(digits, rank=rank, world_size=world_size)).evaluate()
        loss, error = loss + share.loss, error + share.error
    assert loss == pytest.approx(expected.loss, rel=1e-6)
    assert error == pytest.approx(expected.error, rel=1e-12)


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_of_uneven_shares_average_to_the_batchs(digits: Loader, world_size: int) -> None:
    """What DDP does with the loss as it is scaled here; 128 images make uneven thirds."""
    torch.manual_seed(0)
    network = build("resnet8", num_classes=10, in_channels=1).eval()  # BatchNorm sees each share for itself

    def gradient(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
        loss = nn.functional.cross_entropy(network(x), y, reduction="sum") * scale
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

    x, y = next(iter(replace(digits, crop_padding=0).train_batches(0)))
    whole = gradient(x, y, 1 / 128)
    shares = [
        gradient(*next(iter(replace(digits, crop_padding=0, rank=r, world_size=world_size).train_batches(0))),
                 world_size / 128)
        for r in range(world_size)
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(shares).mean(0), whole, rtol=1e-4, atol=1e-6)


def test_progress_is_told_at_an_epochs_first_and_last_step(digits: Loader) -> None:
    told: list[Progress] = []
    next(training(digits).run(told.append))
    assert (told[0].step, told[-1].step) == (1, digits.steps)
    assert told[-1].images_per_second > 0


def test_a_loss_that_is_not_finite_stops_the_training(digits: Loader) -> None:
    diverging = training(digits, lr=1e6)
    with pytest.raises(UserError, match=r"diverged in epoch [12]: the loss is (nan|inf).*smaller --lr"):
        list(diverging.run(ignore))


def test_bf16_is_used_when_asked_for(digits: Loader) -> None:
    seen = []
    asked = training(digits, precision="bf16")
    asked.network.fc.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    asked.evaluate()
    assert set(seen) == {torch.bfloat16}
