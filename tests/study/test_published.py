"""Published numbers stand beside trainings that are the paper's in every option, and nowhere else."""

from typing import Any

import pytest

from resnet_ops.recipe_config import Recipe
from resnet_ops.recipes.reading import configure
from resnet_ops.run_records import DataRecord
from resnet_ops.study.published import CIFAR_10, RATE_OPTIONS, SPEED_OPTIONS, not_comparable, published_error
from tests.study.samples import DATA

CIFAR = DATA.model_copy(
    update={
        "class_names": tuple(sorted(CIFAR_10)), "train_images": 50_000, "val_images": 10_000, "channels": 3,
        "height": 32, "width": 32,
    }
)  # fmt: skip
STEPS = 164 * 390
SETTLED: dict[str, Any] = {"recipe": "paper", "crop_padding": 4, "flip": True}  # by the images
WARM_UP: dict[str, Any] = {"warmup_steps": 400, "warmup": "constant"}


def departures(
    model: str = "resnet20", shortcut: str | None = "A", data: DataRecord = CIFAR, steps: int = STEPS, **options: Any
) -> tuple[str, ...] | None:
    published = published_error(model, shortcut, configure(**SETTLED | options), data, steps)
    return published and published.departures


def test_the_papers_recipe_on_cifar10_is_the_papers() -> None:
    published = published_error("resnet56", "A", configure(**SETTLED), CIFAR, STEPS)
    assert published is not None
    assert (published.error, published.departures) == (0.0697, ())
    assert "table 6" in published.source
    assert departures(data=CIFAR.model_copy(update={"train_images": 45_000})) == ()  # as the paper held out
    assert departures(steps=64_124) == ()
    assert departures(precision="bf16", compile="default") == ()  # how fast, not how
    assert departures(milestones="1/2,3/4", norm_weight_decay=1e-4) == ()  # the same in other words
    assert departures("resnet110", **WARM_UP) == ()


@pytest.mark.parametrize(
    ("changed", "reasons"),
    [
        ({"mixup": 0.2}, ("mixup 0.2",)),
        ({"ema": 0.999, "label_smoothing": 0.1}, ("label smoothing 0.1", "ema 0.999")),
        ({"crop_padding": 0}, ("crop padding 0",)),
        ({"flip": False}, ("no flip",)),
        ({"nesterov": True}, ("nesterov",)),
        ({"batch_size": 256}, ("batch size 256",)),
        ({"weight_decay": 5e-4}, ("weight decay 0.0005",)),
        ({"norm_weight_decay": 0.0}, ("norm weight decay 0.0",)),
        ({"lr": 0.2}, ("another learning rate schedule",)),
        ({"schedule": "cosine"}, ("another learning rate schedule",)),
        ({"milestones": "0.3,0.6"}, ("another learning rate schedule",)),
        ({"milestones": "0.5,0.74"}, ("another learning rate schedule",)),
        ({"lr_decay": 0.2}, ("another learning rate schedule",)),
        ({"warmup_steps": 30_000}, ("another learning rate schedule",)),
        ({"model": "resnet20", **WARM_UP}, ("another learning rate schedule",)),  # only deep networks have one
        ({"model": "resnet110"}, ("another learning rate schedule",)),  # and they do have it
        ({"steps": 30 * 390}, ("11,700 steps, not 64,000",)),
        (
            {"data": CIFAR.model_copy(update={"train_images": 45_000, "val_images": 5000})},
            ("validated on 5,000 images, not on the 10,000 test images",),
        ),
        ({"data": CIFAR.model_copy(update={"height": 64, "width": 64, "stored": 72})}, ("images of 64x64",)),
    ],
)
def test_whatever_departs_from_the_paper_is_named(changed: dict[str, Any], reasons: tuple[str, ...]) -> None:
    assert departures(**changed) == reasons


def test_every_option_of_a_recipe_counts_unless_it_is_known_to_be_about_speed() -> None:
    usual = configure(**SETTLED)
    for name in set(Recipe.model_fields) - RATE_OPTIONS - SPEED_OPTIONS:
        config = usual.model_copy(update={name: "changed"})
        published = published_error("resnet20", "A", config, CIFAR, STEPS)
        assert published is not None
        assert len(published.departures) == 1, name


def test_other_networks_and_images_have_no_published_error() -> None:
    assert departures(shortcut="B") is None
    assert departures("plain56", None) is None  # only drawn in the paper
    assert departures("resnet26") is None
    assert departures(data=DATA) is None


def test_no_training_on_imagenet_is_the_papers() -> None:
    imagenet = DATA.model_copy(
        update={"class_names": tuple(map(str, range(1000))), "val_images": 50_000, "stored": 256, "height": 224}
    )
    published = published_error("resnet34", "A", configure(recipe="torchvision"), imagenet, 450_000)
    assert published is not None
    assert published.error is None
    assert not_comparable([("plain34", published), ("resnet34", published), ("resnet26", None)]) == (
        "plain34, resnet34 not comparable with He et al. 2015, tables 2 and 3: a single crop is tested, not ten, no "
        "scale and color augmentation."
    )
    assert not_comparable([("resnet20", published_error("resnet20", "A", configure(**SETTLED), CIFAR, STEPS))]) is None
