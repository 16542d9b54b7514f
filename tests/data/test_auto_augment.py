"""Operations of automatic augmentation do and are drawn as torchvision's, whose transforms are the reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from resnet_ops.config import TrainConfig
from resnet_ops.data import auto_augment, crops, erasing, image_operations, mixing
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.image_operations import GEOMETRIC, Operation, apply_operations
from resnet_ops.data.sampling import Draws
from resnet_ops.errors import UserError
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import read_space
from tests.data.test_augment import NORMALIZER, generator

NAMES = {each: each.name.title().replace("_", "") for each in Operation}  # torchvision's
POLICIES: dict[str, tuple[type[v2.Transform], Callable[..., Draws]]] = {
    "trivial": (v2.TrivialAugmentWide, auto_augment.draw_trivial_augment),
    "rand": (v2.RandAugment, lambda n, size, source: auto_augment.draw_rand_augment(n, size, 2, 9, source)),
}


def on_a_gpu(x: Tensor, *draws: Tensor) -> Tensor:
    """Do to a batch on the CPU what is done on a GPU."""
    for drawn in zip(*(each.unbind(1) for each in draws), strict=True):
        x = image_operations._to_all(x, *drawn)
    return x


def photos(n: int, h: int, w: int, c: int) -> Tensor:
    """Return smooth images with some noise, (N, H, W, C) uint8, whose channels do not span all levels."""
    source = generator(1)
    smooth = torch.nn.functional.interpolate(torch.rand(n, c, 4, 5, generator=source), (h, w), mode="bicubic")
    noisy = smooth.mul(180).add(30).add(torch.randn(smooth.shape, generator=source), alpha=8)
    return noisy.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def by_torchvision(policy: Any, image: Tensor, operation: Operation, magnitude: float) -> Tensor:
    """Do an operation of a policy to one image (H, W, C)."""
    done = policy._apply_image_or_video_transform(
        image.permute(2, 0, 1), NAMES[operation], magnitude, interpolation=policy.interpolation, fill=policy._fill
    )
    return done.permute(1, 2, 0)


def all_magnitudes(policy: Any, operation: Operation, size: tuple[int, int]) -> list[float]:
    """Return all that a policy may draw for an operation."""
    of_bin, signed = policy._AUGMENTATION_SPACE[NAMES[operation]]
    magnitudes = of_bin(31, *size)
    if magnitudes is None:
        return [0.0]
    return [float(m) * sign for m in magnitudes for sign in ((1, -1) if signed else (1,))]


def as_ours(operation: Operation, magnitude: float) -> float:
    if operation == Operation.POSTERIZE:
        return 2.0 ** (8 - int(magnitude))
    return 255 * magnitude if operation == Operation.SOLARIZE else magnitude


def between_pixels(maps: Tensor, h: int, w: int) -> Tensor:
    """Return where (N, H, W) the place that a pixel is from is midway between two, where rounding errors decide."""
    columns, rows = torch.arange(w).double() - (w - 1) / 2, torch.arange(h).double()[:, None] - (h - 1) / 2
    a, b, shift = maps.double().view(-1, 2, 3, 1, 1).unbind(2)
    places = a * columns + b * rows + shift + torch.tensor([(w - 1) / 2, (h - 1) / 2]).view(1, 2, 1, 1)
    return ((places % 1 - 0.5).abs() < 1e-4).any(1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_an_operation_is_torchvisions(operation: Operation, policy: str) -> None:
    theirs = POLICIES[policy][0]()
    for h, w, c in ((40, 33, 3), (33, 40, 1)):
        magnitudes = all_magnitudes(theirs, operation, (h, w))
        x = photos(len(magnitudes), h, w, c)
        x[0] = 77  # of a single color
        operations = torch.full((len(x), 1), operation)
        own = torch.tensor([as_ours(operation, m) for m in magnitudes])[:, None]
        maps = auto_augment.affine_maps(operations, own, (h, w))
        expected = torch.stack(
            [by_torchvision(theirs, image, operation, m) for image, m in zip(x, magnitudes, strict=True)]
        )
        for apply in (apply_operations, on_a_gpu):
            difference = (apply(x, operations.to(torch.uint8), own, maps).int() - expected.int()).abs()
            if operation in GEOMETRIC:
                difference[between_pixels(maps[:, 0], h, w)] = 0
                assert not difference.any()
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 0.02  # where rounding errors decide


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_are_drawn_as_torchvision_draws_them(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, size, (transform, draw) = 4000, (90, 70), POLICIES[policy]
    theirs: dict[str, list[float]] = {name: [] for name in NAMES.values()}

    def record(_: Any, image: Tensor, name: str, magnitude: float, **__: Any) -> Tensor:
        theirs[name].append(magnitude)
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", record)
    torch.manual_seed(0)
    reference, image = transform(), torch.zeros(3, *size, dtype=torch.uint8)
    for _ in range(n):
        reference(image)
    draws = draw(n, size, generator())
    layers = draws["operations"].shape[1]
    for operation, name in NAMES.items():
        chosen = draws["operations"] == operation
        ours = draws["magnitudes"][chosen].double().numpy()
        deviation = np.sqrt(n * layers * (1 / 14) * (13 / 14))
        assert abs(int(chosen.sum()) - n * layers / 14) < 4 * deviation
        assert abs(len(theirs[name]) - n * layers / 14) < 4 * deviation
        expected = np.array([as_ours(operation, m) for m in theirs[name]], np.float32).astype(float)
        assert np.isin(ours, expected).mean() > 0.97  # some are rare
        error = 4 * np.hypot(ours.std(), expected.std()) / np.sqrt(n * layers / 14) + 1e-6
        assert abs(float(ours.mean()) - expected.mean()) < error
        assert float(ours.std()) == pytest.approx(expected.std(), rel=0.15, abs=1e-4)


@pytest.mark.parametrize("c", [1, 3])
def test_operations_follow_one_another_in_each_image(c: int) -> None:
    theirs = v2.RandAugment()
    both = Augmentation(rand_augment=(2, 9), color_jitter=0.4)
    x, draws = photos(60, 32, 24, c), both.draw(60, (32, 24), generator())
    arguments = [draws[name] for name in ("operations", "magnitudes", "maps")]
    ours = apply_operations(x, *arguments)
    assert torch.equal(ours, on_a_gpu(x, *arguments))
    ours = image_operations.jitter(ours, draws["jitter_order"], draws["jitter"])
    every = [torch.cat(each, 1) for each in zip(arguments, (draws["jitter_order"], draws["jitter"]), strict=False)]
    assert ours.shape == x.shape
    back = {Operation.POSTERIZE: lambda m: 8 - np.log2(m), Operation.SOLARIZE: lambda m: m / 255}
    for image, mine, operations, magnitudes in zip(x, ours, *every, strict=True):
        for operation, magnitude in zip(map(Operation, operations.tolist()), magnitudes.tolist(), strict=True):
            image = by_torchvision(theirs, image, operation, back.get(operation, float)(magnitude))
        difference = (mine.int() - image.int()).abs()
        assert (difference > 3).float().mean() < 0.005  # a level may grow, where colors are stretched after it


def test_color_jitter_is_drawn_as_torchvision_draws_it() -> None:
    n = 3000
    for strength in (0.4, 1.0):
        draws = auto_augment.draw_color_jitter(n, strength, generator())
        theirs = v2.ColorJitter(strength, strength, strength)
        low, high = theirs.brightness
        factors = 1 + draws["jitter"]
        assert low <= factors.min() < low + 0.02
        assert high - 0.02 < factors.max() <= high
        assert factors.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * 3 * n))
    orders, counts = np.unique(draws["jitter_order"], axis=0, return_counts=True)
    assert len(orders) == 6
    assert {*orders.ravel()} == {Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR}
    assert abs(counts - n / 6).max() < 4 * np.sqrt(n * (1 / 6) * (5 / 6))


@pytest.mark.parametrize("size", [(40, 60), (9, 90)])
def test_boxes_are_erased_as_torchvision_erases_them(size: tuple[int, int]) -> None:
    n = 3000
    boxes = erasing.draw_erased(n, size, 1.0, generator())["erased"]
    torch.manual_seed(0)
    theirs, image = v2.RandomErasing(p=1.0), torch.ones(3, *size)
    drawn = [theirs.make_params([image]) for _ in range(n)]
    expected = np.array([[each[name] if each["v"] is not None else 0 for name in "ijhw"] for each in drawn], float)
    ours = (boxes * (boxes[:, 2:3] > 0)).numpy().astype(float)
    assert ((ours[:, :2] + ours[:, 2:]) <= size).all()
    for one, other in zip(ours.T, expected.T, strict=True):
        assert abs(one.mean() - other.mean()) < 4 * np.hypot(one.std(), other.std()) / np.sqrt(n)
        assert one.std() == pytest.approx(other.std(), rel=0.1)
    erased = erasing.erase(torch.ones(20, 3, *size), boxes[:20])
    for mine, (top, left, h, w) in zip(erased, boxes[:20].tolist(), strict=True):
        assert torch.equal(mine, v2.functional.erase(image, top, left, h, w, torch.zeros(1)))


def test_some_images_are_erased() -> None:
    boxes = erasing.draw_erased(4000, (32, 32), 0.25, generator())["erased"]
    assert (boxes[:, 2] > 0).float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(boxes[:, 2] > 0, boxes[:, 3] > 0)


def test_everything_is_done_in_the_order_of_torchvisions_recipes() -> None:
    every = Augmentation(2, True, rand_augment=(1, 15), color_jitter=0.2, random_erasing=0.5, mixup=0.4, classes=4)
    x, y = photos(16, 20, 20, 3), torch.arange(16) % 4
    before, draws = x.clone(), every.draw(16, (20, 20), generator())
    ours, labels = every(x, y, draws, NORMALIZER)
    assert torch.equal(x, before)
    x = crops.crop_and_flip(x, draws["corners"], draws["mirrored"], 2, (20, 20))
    x = apply_operations(x, draws["operations"], draws["magnitudes"], draws["maps"])
    x = image_operations.jitter(x, draws["jitter_order"], draws["jitter"])
    expected = mixing.mix(erasing.erase(NORMALIZER(x), draws["erased"]), torch.eye(4)[y], draws)
    assert torch.equal(ours, expected[0])
    assert torch.equal(labels, expected[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rand_augment": "2"}, "--rand-augment must be a number of operations and a magnitude, such as 2,9; '2'"),
        ({"rand_augment": "m9"}, "--rand-augment must be a number of operations and a magnitude"),
        ({"rand_augment": "0,9"}, "1 to 10, and a magnitude, 0 to 30"),
        ({"rand_augment": "2,31"}, "1 to 10, and a magnitude, 0 to 30"),
        ({"rand_augment": "2,-1"}, "--rand-augment must be"),
        ({"color_jitter": 1.5}, "--color-jitter .*less than or equal to 1"),
        ({"color_jitter": float("nan")}, "--color-jitter"),
        ({"random_erasing": 25}, "--random-erasing .*less than or equal to 1"),
        ({"rand_augment": "2,9", "trivial_augment": True}, "--trivial-augment and --rand-augment 2,9 are two policies"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig.of(**options)


def test_it_is_said_and_searched() -> None:
    config = TrainConfig.of(flip=True, rand_augment=" 2, 9", color_jitter=0.4, random_erasing=0.25)
    assert Augmentation.of(config, 10).rand_augment == (2, 9)
    words = "random crop from 256x364, horizontal flip, RandAugment 2,9, color jitter 0.4, random erasing 0.25"
    assert config.augmentation((256, 364)) == words
    space = read_space(TuneConfig.of(), ["rand-augment=2,9", "trivial_augment=true,false"])
    assert space.fixed["rand_augment"] == "2,9"
    assert set(space.searched) >= {"trivial_augment"}
