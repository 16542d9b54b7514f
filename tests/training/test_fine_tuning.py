"""AdamW, fp16, gradient checkpointing and frozen layers do what plain PyTorch would."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_ops.architectures import parse_name
from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.models import BasicBlock, Bottleneck, build, head_of, layers_of
from resnet_ops.recipes.reading import configure
from resnet_ops.training import preflight
from resnet_ops.training.build import build_trainer
from resnet_ops.training.checkpoint import read_best
from resnet_ops.training.defaults import report_defaults
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.gradient_checkpointing import checkpoint_blocks
from resnet_ops.training.job import TrainResult
from resnet_ops.training.loss import weigh_classes
from resnet_ops.training.memory import training_bytes
from resnet_ops.training.mixed_precision import measured_precision
from resnet_ops.training.observer import Observer
from resnet_ops.training.schedule import learning_rate
from resnet_ops.training.trainer import Trainer

CPU = torch.device("cpu")
BATCH, STEPS = 32, 3  # of an epoch


@pytest.fixture(scope="module")
def digits() -> Loader:
    whole = open_loader(open_source("digits"), CPU, batch_size=BATCH, augmentation=Augmentation(1), seed=0)
    assert isinstance(whole.train, DeviceImages)
    return replace(whole, train=DeviceImages(whole.train.pixels[: BATCH * STEPS], whole.train.labels[: BATCH * STEPS]))


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8", num_classes=10, in_channels=1).to(memory_format=torch.channels_last)


def training(loader: Loader, events: list[str] | None = None, **options: Any) -> Trainer:
    config = TrainConfig.of(model="resnet8", epochs=2, batch_size=BATCH, **options)
    log = (events if events is not None else []).append
    return build_trainer(config, fresh(), loader, ProcessGroup(), CPU, log)


def train(trainer: Trainer) -> list[Any]:
    return [epoch for epoch in trainer.run(lambda _: None) if epoch is not None]


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    """Return the layers, the head among them, of which a weight or a statistic differs."""
    pairs = zip(before.state_dict().items(), after.state_dict().values(), strict=True)
    names = [name for (name, old), new in pairs if not torch.equal(old, new)]
    return {"stem" if name.startswith(("conv1.", "bn1.")) else name.partition(".")[0] for name in names}


def assert_close(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    for (name, our), their in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_and_another_rate_of_the_head_are_plain_pytorchs(digits: Loader, fused: bool) -> None:
    ours = training(
        digits, optimizer="adamw", lr=1e-3, weight_decay=0.1, norm_weight_decay=0.0, head_lr=7.0, fused=fused
    )
    theirs = fresh()
    rows = [p for name, p in theirs.named_parameters() if p.dim() == 1 and not name.startswith("fc.")]
    weights = [p for name, p in theirs.named_parameters() if p.dim() > 1 and not name.startswith("fc.")]
    groups = [
        {"params": weights, "times": 1}, {"params": rows, "weight_decay": 0.0, "times": 1},
        {"params": [theirs.fc.weight], "times": 7}, {"params": [theirs.fc.bias], "weight_decay": 0.0, "times": 7},
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1, fused=fused)
    for step, (x, y) in enumerate([*digits.train_batches(0), *digits.train_batches(1)]):
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * learning_rate(ours.config, step, 2 * STEPS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    train(ours)
    assert_close(ours.network, theirs, 1e-4)
    steps = {float(state["step"]) for state in ours.optimizer.state.values()}
    assert steps == {2.0 * STEPS}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fp16_is_plain_pytorchs(digits: Loader, optimizer: str) -> None:
    """With micro-batches and clipping, for which the gradients are unscaled."""
    options = {"lr": 0.01, "clip_grad_norm": 0.5, "accumulate": 2}
    ours, theirs = training(digits, precision="fp16", optimizer=optimizer, **options), fresh()
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    more = {} if optimizer == "adamw" else {"momentum": 0.9}
    torchs = kind(theirs.parameters(), weight_decay=1e-4, fused=True, **more)
    scaler = torch.amp.GradScaler("cpu")
    for step, (x, y) in enumerate([*digits.train_batches(0), *digits.train_batches(1)]):
        torchs.param_groups[0]["lr"] = learning_rate(ours.config, step, 2 * STEPS)
        torchs.zero_grad()
        for images, labels in zip(x.chunk(2), y.chunk(2), strict=True):
            with torch.autocast("cpu", torch.float16):
                logits = theirs(images)
            loss_sum = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            scaler.scale(loss_sum * (1 / BATCH)).backward()
        scaler.unscale_(torchs)
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        scaler.step(torchs)
        scaler.update()
    train(ours)
    assert_close(ours.network, theirs, 1e-6)
    assert ours.scaler is not None
    assert ours.scaler.scale == scaler.get_scale()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_whose_gradients_overflow_is_skipped_and_said(digits: Loader, optimizer: str, fused: bool) -> None:
    """The first one and another: the weights stay, the next steps are as if it had not been."""
    events: list[str] = []
    ours = training(digits, events, precision="fp16", optimizer=optimizer, lr=0.01, fused=fused, ema=0.5)
    overflows = iter([True, False, True, False, False, False])
    ours.network.fc.weight.register_hook(lambda gradient: gradient * float("inf") if next(overflows) else None)
    weights = [ours.network.fc.weight.detach().clone()]
    first_scale = ours.scaler.scale if ours.scaler else 0.0

    def record(_: int) -> bool:
        weights.append(ours.network.fc.weight.detach().clone())
        return False

    epochs = [epoch for epoch in ours.run(lambda _: None, record) if epoch is not None]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert [epoch.skipped_steps for epoch in epochs] == [2, 0]
    assert (first_scale, ours.scaler and ours.scaler.scale) == (2.0**16, 2.0**14)
    assert events == [
        "fp16: 2 of 3 steps of epoch 1 were skipped, as their gradients overflowed; losses are now scaled by 16384."
    ]
    assert all(torch.isfinite(value).all() for value in ours.eval_network.state_dict().values())
    assert float((weights[2] - weights[1]).abs().max()) < 0.1  # no momentum of memory that nothing was written to


def test_gradients_that_are_finite_at_no_scale_stop_the_training(digits: Loader) -> None:
    ours = training(digits, precision="fp16")
    assert ours.scaler is not None
    state = ours.scaler.state()
    ours.scaler.load_state(state | {"scale": torch.tensor(2.0**-19)})
    ours.network.fc.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="diverged in epoch 1: its gradients are not finite in fp16"):
        train(ours)


def kept_bytes(network: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Return what the forward pass keeps for the backward pass, with the inputs of blocks, and the logits."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    hooks = [block.register_forward_pre_hook(lambda _, inputs: (keep(inputs[0]),)) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(x)
    for hook in hooks:
        hook.remove()
    return sum(storages.values()), logits


@pytest.mark.parametrize("model", ["resnet14", "plain14", "resnet50"])
@pytest.mark.parametrize("mode", ["trained", "frozen at first"])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(model: str, mode: str) -> None:
    torch.manual_seed(0)
    plain = build(model, num_classes=10).to(memory_format=torch.channels_last)
    if mode == "frozen at first":
        plain.conv1.requires_grad_(False)
        plain.layer1.requires_grad_(False).eval()
    ours = copy.deepcopy(plain)
    checkpoint_blocks(ours)
    x = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    (all_kept, expected), (kept, logits) = kept_bytes(plain, x), kept_bytes(ours, x)
    expected.square().sum().backward()
    logits.square().sum().backward()
    assert torch.equal(logits, expected)
    assert mode == "frozen at first" or kept < 0.7 * all_kept
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    assert not changed(plain, ours)  # nor BatchNorm's statistics, of which there was one step
    assert copy.deepcopy(ours).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet8", "plain14", "resnet18", "resnet50", "alexnet", "vgg19", "googlenet"])
def test_each_weight_is_in_one_layer_or_the_head(name: str) -> None:
    with torch.device("meta"):
        network = build(name, num_classes=4)
    layers = layers_of(network)
    assert tuple(layers) == parse_name(name).layers
    parts = [*(module for modules in layers.values() for module in modules), head_of(network)]
    assert head_of(network) is network.get_submodule(parse_name(name).head)
    assert head_of(network).out_features == 4
    inside = [id(parameter) for part in parts for parameter in part.parameters()]
    assert inside == [id(parameter) for parameter in network.parameters()]


def test_frozen_layers_stay_as_they_are_and_the_others_train_as_without_them(digits: Loader) -> None:
    ours = training(digits, freeze="layer1", ema=0.9, weight_decay=0.1, clip_grad_norm=0.5)
    theirs, before = fresh(), fresh()
    for part in (theirs.conv1, theirs.bn1, theirs.layer1):
        part.requires_grad_(False)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)
    for step, (x, y) in enumerate([*digits.train_batches(0), *digits.train_batches(1)]):
        theirs.train()
        theirs.bn1.eval()
        theirs.layer1.eval()
        optimizer.param_groups[0]["lr"] = learning_rate(ours.config, step, 2 * STEPS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
    train(ours)
    assert changed(before, ours.network) == changed(before, ours.eval_network) == {"layer2", "layer3", "fc"}
    assert_close(ours.network, theirs, 1e-4)
    frozen = [p for p in ours.network.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    assert not {id(p) for p in frozen} & {id(p) for group in ours.optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layers_that_are_frozen_at_first_train_afterwards(digits: Loader, optimizer: str) -> None:
    """The head alone in the first epoch; the optimizer's state of the others begins in the second."""
    ours = training(digits, freeze_epochs=1, optimizer=optimizer, lr=0.01, head_lr=3.0)
    before, epochs = fresh(), ours.run(lambda _: None)
    runner = ours.step_runner
    next(epochs)
    after_one = copy.deepcopy(ours.network)
    assert changed(before, after_one) == {"fc"}
    assert ours.step_runner is runner
    next(epochs)
    assert changed(after_one, ours.network) == {"stem", "layer1", "layer2", "layer3", "fc"}
    assert ours.step_runner is not runner  # so that another step is captured
    if optimizer == "adamw":
        steps = {name: float(ours.optimizer.state[p]["step"]) for name, p in ours.network.named_parameters()}
        assert {steps["fc.weight"], steps["conv1.weight"]} == {2.0 * STEPS, 1.0 * STEPS}


def test_frozen_batchnorm_trains_its_weights_and_keeps_its_statistics(digits: Loader) -> None:
    ours, before = training(digits, freeze_batchnorm=True), fresh()
    train(ours)
    kept = dict(before.named_buffers())
    assert all(torch.equal(value, kept[name]) for name, value in ours.network.named_buffers())
    assert not torch.equal(ours.network.bn1.weight, before.bn1.weight)


@pytest.mark.parametrize("size", [3, 7])
def test_statistics_that_all_workers_share_are_their_own_mean(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose sum is rounded, or it would move a little with each epoch."""
    network = fresh()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape))
    before = copy.deepcopy(network)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda row: row.mul_(size))
    ProcessGroup(0, size).average_batchnorm(network)
    assert not changed(before, network)


def test_all_of_it_at_once_is_plain_pytorchs(digits: Loader) -> None:
    loader = replace(digits, balanced=True)
    config = TrainConfig.of(
        model="resnet8", epochs=2, batch_size=BATCH, lr=0.05, nesterov=True, weight_decay=0.01, norm_weight_decay=0.0,
        freeze="layer1", freeze_epochs=1, head_lr=5.0, precision="fp16", accumulate=2, gradient_checkpointing=True,
        clip_grad_norm=0.5, label_smoothing=0.1, class_weights="0=4,3=0.2", sampler="balanced", ema=0.9,
    )  # fmt: skip
    given = weigh_classes(config, tuple("0123456789"), loader.train.labels)
    ours, theirs = build_trainer(config, fresh(), loader, ProcessGroup(), CPU, class_weights=given), fresh()
    weights = torch.tensor([4, 1, 1, 0.2, 1, 1, 1, 1, 1, 1])
    weights /= weights.mean()  # over images, as each class is drawn equally often
    rest, head = [p for name, p in theirs.named_parameters() if not name.startswith("fc.")], theirs.fc
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "times": 1},
        {"params": [p for p in rest if p.dim() == 1], "times": 1, "weight_decay": 0.0},
        {"params": [head.weight], "times": 5}, {"params": [head.bias], "times": 5, "weight_decay": 0.0},
    ]  # fmt: skip
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    scaler, average, step = torch.amp.GradScaler("cpu"), copy.deepcopy(theirs.state_dict()), 0
    for epoch in range(2):
        theirs.train()
        for part in (theirs.conv1, theirs.bn1, theirs.layer1):
            part.requires_grad_(epoch > 0).train(epoch > 0)
        for x, y in loader.train_batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * learning_rate(config, step, 2 * STEPS)
            optimizer.zero_grad()
            for images, labels in zip(x.chunk(2), y.chunk(2), strict=True):
                with torch.autocast("cpu", torch.float16):
                    logits = theirs(images).float()
                loss = nn.functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=0.1)
                scaler.scale(loss / BATCH).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            kept = min(0.9, (1 + step) / (10 + step))
            for name, value in theirs.state_dict().items():
                average[name] = kept * average[name] + (1 - kept) * value if value.is_floating_point() else value
            step += 1
    train(ours)
    assert_close(ours.network, theirs, 1e-5)
    theirs.load_state_dict(average)
    assert_close(ours.eval_network, theirs, 1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nesterov": ({"optimizer": "adamw", "nesterov": True}, "--nesterov is an option of SGD, not of AdamW"),
    "momentum": ({"optimizer": "adamw", "momentum": 0.8}, "--momentum is an option of SGD"),
    "synchronized": ({"freeze_batchnorm": True, "sync_batchnorm": True, "weights": "x"}, "would synchronize"),
    "compiled": ({"gradient_checkpointing": True, "compile": "default"}, "the compiler decides"),
    "no such layer": (
        {"freeze": "layer4", "weights": "x"},
        "resnet8 has no such layer.*Did you mean layer3.*Its layers are stem, layer1, layer2, layer3",
    ),
    "the head": ({"freeze": "fc", "weights": "x"}, "the head is always trained.*Use --freeze layer3"),
    "a layer of AlexNet": (
        {"model": "alexnet", "image_size": 64, "freeze": "stem", "weights": "x"}, "Its layers are features, classifier"
    ),
    "no weights": ({"freeze": "layer1"}, "--freeze layer1 keeps weights as they are, but none are given.*--weights"),
    "no weights at first": ({"freeze_epochs": 2}, "--freeze-epochs 2 keeps weights"),
    "no statistics": ({"freeze_batchnorm": True}, "--freeze-batchnorm keeps weights"),
    "no BatchNorm": (
        {"model": "vgg19", "image_size": 32, "freeze_batchnorm": True, "weights": "x"}, "vgg19 has no BatchNorm"
    ),
    "no blocks": ({"model": "vgg19", "image_size": 32, "gradient_checkpointing": True}, "vgg19 has no blocks"),
    "too long": (
        {"freeze_epochs": 30, "weights": "x"}, "--freeze-epochs 30: the whole training is 30 epochs.*to the end"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(UserError) as refused:
        preflight.check_training(configure(**({"model": "resnet8"} | options)), "cpu")
    assert re.search(message, f"{refused.value} {refused.value.remedy}", re.DOTALL)


class Noting(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def settled(**options: Any) -> tuple[TrainConfig, list[str]]:
    requested, observer = configure(model="resnet8", **options), Noting()
    _, config = preflight.check_training(requested, "cpu", workers=options.get("workers_per_node", 1))
    report_defaults(requested, config, "cpu", observer)
    return config, observer.warnings


def test_the_defaults_of_adamw_are_its_own_and_said() -> None:
    config, said = settled(optimizer="adamw")
    assert (config.lr, config.weight_decay) == (1e-3, 1e-2)
    assert "AdamW with --lr 0.001, --weight-decay 0.01" in said[0]
    config, said = settled(optimizer="adamw", lr=3e-4, weight_decay=0.0)
    assert (config.lr, config.weight_decay, said) == (3e-4, 0.0, [])
    config, said = settled()
    assert (config.lr, said) == (0.1, [])
    assert not {"lr", "freeze_batchnorm", "weight_decay"} & config.unusual().keys()
    # Those of a recipe are SGD's.
    config, _ = settled(recipe="fast", optimizer="adamw")
    assert (config.lr, config.nesterov, config.norm_weight_decay) == (1e-3, False, 0.0)
    assert settled(recipe="fast", optimizer="sgd")[0].lr == 0.2


@pytest.mark.parametrize(
    ("options", "freezes"),
    [
        ({}, False),
        ({"batch_size": 8}, False),
        ({"batch_size": 8, "weights": "x"}, True),
        ({"batch_size": 16, "weights": "x"}, False),
        ({"batch_size": 16, "weights": "x", "workers_per_node": 2}, True),
        ({"batch_size": 64, "accumulate": 8, "weights": "x"}, True),
        ({"batch_size": 8, "weights": "x", "freeze_batchnorm": False}, False),
        ({"model": "alexnet", "image_size": 64, "batch_size": 8, "weights": "x"}, False),
    ],
)
def test_small_batches_do_not_move_the_statistics_of_given_weights(options: dict[str, Any], freezes: bool) -> None:
    requested = configure(**({"model": "resnet8"} | options))
    observer = Noting()
    _, config = preflight.check_training(requested, "cpu", workers=options.get("workers_per_node", 1))
    report_defaults(requested, config, "cpu", observer)
    assert bool(config.freeze_batchnorm) is freezes
    assert any("BatchNorm keeps" in said for said in observer.warnings) is freezes


def test_adamw_takes_the_memory_of_another_copy_of_the_weights() -> None:
    data = open_source("digits").record
    sgd, adamw = (TrainConfig.of(model="resnet20", optimizer=name) for name in ("sgd", "adamw"))
    weights = sum(p.numel() for p in build("resnet20", num_classes=10, in_channels=1).parameters())
    assert training_bytes(adamw, data, 2**36) - training_bytes(sgd, data, 2**36) == pytest.approx(4 * weights, abs=2)


def test_a_checkpoint_says_in_what_precision_it_was_measured(trained: TrainResult) -> None:
    assert read_best(trained.run)[0].info.precision == "fp32"
    assert [measured_precision(name, CPU) for name in ("auto", "fp32", "bf16", "fp16")] == [
        "fp32", "fp32", "bf16", "fp16"
    ]  # fmt: skip
