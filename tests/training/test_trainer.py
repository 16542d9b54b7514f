"""The loop does what plain PyTorch would, and its metrics are exact."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.training.build import build_trainer, without_dynamo
from resnet_ops.training.distributed import ProcessGroup, set_statistics, statistics
from resnet_ops.training.schedule import learning_rate
from resnet_ops.training.trainer import Progress, Trainer
from resnet_ops.training.validation_metrics import evaluate_batches, more_metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Loader:
    return open_loader(open_source("digits"), CPU, batch_size=128, augmentation=Augmentation(1), seed=0)


def training(loader: Loader, **options: object) -> Trainer:
    config = TrainConfig.of(model="resnet8", epochs=2, **options)
    torch.manual_seed(0)
    return build_trainer(config, build("resnet8", num_classes=10, in_channels=1), loader, ProcessGroup(), CPU)


def ignore(_: Progress) -> None:
    pass


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_plain_pytorchs(digits: Loader, fused: bool) -> None:
    """For six steps: after twelve, a ReLU that rounding turns over makes 2e-3 of 5e-7, in plain PyTorch too."""
    assert isinstance(digits.train, DeviceImages)
    digits = replace(digits, train=DeviceImages(digits.train.pixels[:700], digits.train.labels[:700]))
    ours = training(digits, weight_decay=1e-3, fused=fused, channels_last=fused)
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


def test_all_that_can_be_switched_on_is_plain_pytorchs(digits: Loader) -> None:
    """Nesterov, clipping, smoothing, another weight decay for BatchNorm and biases, and the average, by hand."""
    ours = training(
        digits, nesterov=True, clip_grad_norm=0.5, label_smoothing=0.1, weight_decay=5e-3, norm_weight_decay=0.0,
        ema=0.8,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = build("resnet8", num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    rows = ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias", "fc.bias")
    groups = [[p for name, p in theirs.named_parameters() if name.endswith(rows) == is_row] for is_row in (False, True)]
    optimizer = torch.optim.SGD(
        [{"params": groups[0], "weight_decay": 5e-3}, {"params": groups[1], "weight_decay": 0}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    average = {name: value.clone() for name, value in theirs.state_dict().items()}
    clipped = 0
    for step, (x, y) in enumerate(digits.train_batches(0)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(ours.config, step, 2 * digits.steps)
        optimizer.zero_grad()
        nn.CrossEntropyLoss(label_smoothing=0.1)(theirs(x), y).backward()
        clipped += float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)) > 0.5
        optimizer.step()
        kept = min(0.8, (1 + step) / (10 + step))
        for name, value in theirs.state_dict().items():
            average[name] = kept * average[name] + (1 - kept) * value if value.is_floating_point() else value.clone()
    assert clipped > 3
    metrics = next(ours.run(ignore))
    for (name, our), their in zip(ours.network.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4, msg=name)
    for name, our in ours.eval_network.state_dict().items():
        torch.testing.assert_close(our, average[name], rtol=1e-3, atol=1e-4, msg=name)
    # What is validated is the average.
    theirs.load_state_dict(average)
    x, y = next(iter(digits.val_batches()))
    with torch.no_grad():
        assert metrics is not None
        assert metrics.val_loss == pytest.approx(nn.functional.cross_entropy(theirs.eval()(x), y).item(), rel=1e-3)


@pytest.mark.parametrize(("micro_batches", "mixup"), [(1, 0.5), (3, 0.0), (5, 0.5), (128, 0.0)])
def test_micro_batches_add_up_to_the_batch(digits: Loader, micro_batches: int, mixup: float) -> None:
    """With labels that are mixed and smoothed too: cross entropy of probabilities."""
    ours = training(digits, accumulate=micro_batches, label_smoothing=0.2)
    ours.network.eval()  # BatchNorm sees each micro-batch for itself
    mixed = replace(digits, augmentation=Augmentation(mixup=mixup, classes=10))
    ours.loader = mixed
    block = next(mixed.blocks(0))
    ours.inputs.load(block.columns)
    x, y = next(mixed.train_batches(0))
    soft = y if mixup else nn.functional.one_hot(y, 10).float()
    loss = nn.functional.cross_entropy(ours.network(x), 0.8 * soft + 0.2 / 10)
    expected = torch.autograd.grad(loss, list(ours.network.parameters()))
    ours.compute_gradients()
    for parameter, gradient in zip(ours.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert ours.totals[0].item() == pytest.approx(128 * loss.item(), rel=1e-5)
    with torch.no_grad():
        errors = (ours.network(x).argmax(1) != soft.argmax(1)).sum().item()
    assert ours.totals[1].item() == errors


def test_a_residual_branch_that_begins_at_zero_adds_nothing(digits: Loader) -> None:
    ours = training(digits, zero_init_residual=True)
    block, x = ours.network.layer1[0], torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x)
    assert not torch.equal(training(digits).network.layer1[0](x), x)


@pytest.mark.slow  # half a minute of compiling
def test_a_compiled_step_is_the_same_step(digits: Loader) -> None:
    plain, compiled = training(digits), training(digits, compile="default")
    one, other = next(plain.run(ignore)), next(compiled.run(ignore))
    assert one is not None
    assert other is not None
    assert other.train_loss == pytest.approx(one.train_loss, rel=1e-3)


def test_a_network_without_batchnorm_has_no_statistics() -> None:
    network = build("alexnet", num_classes=10)
    row = statistics(network)
    assert row.shape == (0,)
    set_statistics(network, row)


def test_validation_metrics_are_scikit_learns(digits: Loader) -> None:
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        f1_score,
        log_loss,
        recall_score,
        top_k_accuracy_score,
    )

    trained = training(digits)
    (epoch, *_) = list(trained.run(ignore))
    assert epoch.epoch == 1
    val = trained.evaluate()
    x, y = next(iter(digits.val_batches()))
    with torch.no_grad():
        probabilities = trained.network.eval()(x).double().softmax(1).numpy()
    assert val.error == pytest.approx(1 - accuracy_score(y, probabilities.argmax(1)))
    assert val.loss == pytest.approx(log_loss(y, probabilities, labels=range(10)), rel=1e-5)
    assert val.top5_error == pytest.approx(1 - top_k_accuracy_score(y, probabilities, k=5))
    assert val.macro_recall == pytest.approx(recall_score(y, probabilities.argmax(1), average="macro"))
    assert val.macro_f1 == pytest.approx(f1_score(y, probabilities.argmax(1), average="macro"))
    matrix = confusion_matrix(y, probabilities.argmax(1))
    assert trained.count_classes(10) == tuple(zip(matrix.diagonal(), matrix.sum(1), strict=True))
    assert len(load_digits().target) == len(digits.train) + len(digits.val)


@pytest.mark.parametrize("classes", [5, 6, 1200])
def test_metrics_of_many_classes_are_scikit_learns(classes: int) -> None:
    """Classes that no image has are left out, though images are taken for them."""
    from sklearn.metrics import f1_score, recall_score, top_k_accuracy_score

    x = torch.randn(3000, classes, generator=torch.Generator().manual_seed(classes))
    y = torch.arange(3000) % (classes - 1)
    x[torch.arange(3000), y] += 2
    x[:2, -1] = 99
    config, batches = TrainConfig.of(channels_last=False), zip(x.split(700), y.split(700), strict=True)
    share = evaluate_batches(nn.Identity(), batches, config, CPU, lambda: None)
    answers = torch.cat((share.answers, torch.zeros(9, 3, dtype=torch.int32)))  # of images that cannot be decoded
    top5_error, recall, f1 = more_metrics(answers, share.classes)
    predicted, labels = x.argmax(1).numpy(), y.numpy()
    if classes > 5:
        assert top5_error == pytest.approx(1 - top_k_accuracy_score(labels, x.numpy(), k=5, labels=range(classes)))
    else:
        assert math.isnan(top5_error)
    for ours, theirs in ((recall, recall_score), (f1, f1_score)):
        each = theirs(labels, predicted, average=None, labels=range(classes), zero_division=0)
        assert ours == pytest.approx(each[:-1].mean())
    assert (predicted == classes - 1).any()


def test_without_an_image_that_can_be_decoded_there_is_no_metric() -> None:
    assert all(map(math.isnan, more_metrics(torch.zeros(4, 3, dtype=torch.int32), 0)))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_shares_of_the_validation_set_add_up_to_the_whole(digits: Loader, world_size: int) -> None:
    whole = training(digits)
    expected = whole.evaluate()
    loss = error = 0.0
    correct = torch.zeros(len(digits.val), dtype=torch.uint8)
    for rank in range(world_size):
        shard = replace(whole, loader=replace(digits, rank=rank, world_size=world_size))
        share = shard.evaluate()
        part = sum(map(len, digits.val.sequential_batches(500, rank, world_size))) / len(digits.val)
        assert shard.val_correct is not None
        loss, error = loss + part * share.loss, error + part * share.error
        correct += shard.val_correct
    assert loss == pytest.approx(expected.loss, rel=1e-6)
    assert error == pytest.approx(expected.error, rel=1e-12)
    assert correct.tolist() == whole.val_correct.tolist()  # each image by the rank that has it
    assert int(correct.sum()) == round(len(correct) * (1 - error))


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_of_uneven_shares_average_to_the_batchs(digits: Loader, world_size: int) -> None:
    """What DDP does with the loss as it is scaled here; 128 images make uneven thirds."""
    torch.manual_seed(0)
    network = build("resnet8", num_classes=10, in_channels=1).eval()  # BatchNorm sees each share for itself

    def gradient(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
        loss = nn.functional.cross_entropy(network(x), y, reduction="sum") * scale
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

    plain = replace(digits, augmentation=Augmentation())
    x, y = next(iter(plain.train_batches(0)))
    whole = gradient(x, y, 1 / 128)
    shares = [
        gradient(*next(iter(replace(plain, rank=r, world_size=world_size).train_batches(0))), world_size / 128)
        for r in range(world_size)
    ]
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


def test_dropout_follows_from_seed_and_step_alone(digits: Loader) -> None:
    """So that a run that goes on elsewhere drops what it would have dropped."""

    def weights(noise: int) -> torch.Tensor:
        config = TrainConfig.of(model="resnet8", epochs=1)
        torch.manual_seed(0)
        network = build("resnet8", num_classes=10, in_channels=1)
        network.fc = nn.Sequential(nn.Dropout(0.5), network.fc)
        ours = build_trainer(config, network, digits, ProcessGroup(), CPU)
        torch.manual_seed(noise)
        list(ours.run(ignore))
        return ours.network.fc[1].weight.detach()

    torch.testing.assert_close(weights(1), weights(2), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_any_optimizer_makes_its_own_step(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.rand(8, requires_grad=True), torch.empty(8, requires_grad=True)
    with torch.no_grad():
        theirs.copy_(ours)
    one, other = without_dynamo(kind)([ours], lr=0.1), kind([theirs], lr=0.1)
    ended = []
    one.register_step_post_hook(lambda *_: ended.append(torch.is_grad_enabled()))
    for _ in range(3):
        for weights, optimizer in ((ours, one), (theirs, other)):
            (weights**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert weights.grad is None
    assert torch.equal(ours, theirs)
    assert ended == [True] * 3
    assert hasattr(torch.optim.Optimizer.add_param_group, "__wrapped__")  # torch's own classes are as they were


def test_torchs_compiler_is_not_imported_to_train(tmp_path: Path) -> None:
    """It would take each worker 1 s."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from resnet_ops.config import TrainConfig\nfrom resnet_ops.training import job\n"
        "for options in ({}, {'optimizer': 'adamw', 'precision': 'fp16'}):\n"
        f"    job.train(TrainConfig.of(model='resnet8', epochs=1, **options, runs_dir=Path({str(tmp_path)!r})))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False"
