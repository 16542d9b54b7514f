"""What is chosen by the images and the device, where the user has not: the network, and the recipe for photos."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.formatting import image_size
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipes.reading import configure, read_recipe, recipe_names
from resnet_ops.run_records import StartRecord
from resnet_ops.training.defaults import explain_choices, report_defaults, suggest_weights
from resnet_ops.training.ema import ExponentialMovingAverage
from resnet_ops.training.job import TrainResult
from resnet_ops.training.observer import Observer
from resnet_ops.training.overview import unusual_options
from resnet_ops.training.preflight import check_training
from resnet_ops.training.start import settle_head, start_weights
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.preflight import FINETUNE_LR, PHOTO_NETWORKS, settle_space
from resnet_ops.tuning.space import ADAMW_RATES, Choices, read_space
from tests.notes import Notes
from tests.test_runs import record

PHOTO = (224, 224)


@pytest.fixture(scope="module")
def digits() -> Source:
    return open_source("digits")


def images_of(digits: Source, size: tuple[int, int], images: int = 320) -> Source:
    """The digits as if they were larger: nothing of them is decoded."""
    update = {"name": "photos", "height": size[0], "width": size[1], "train_images": images}
    return replace(digits, record=digits.record.model_copy(update=update))


def check(source: Source, device: Device = "cpu", **options: object) -> tuple[TrainConfig, list[str]]:
    requested = configure(**{"data": "photos", **options})
    _, settled = check_training(requested, device, source)
    return settled, [*map(str, explain_choices(requested, settled, source.record, device))]


@pytest.mark.parametrize(
    ("size", "images", "device", "weights", "model"),
    [
        ((8, 8), 1438, "cpu", None, "resnet20"),
        ((64, 64), 50_000, "cuda", None, "resnet20"),
        ((65, 65), 400, "cpu", None, "resnet18"),
        ((100, 20), 400, "cpu", None, "resnet20"),  # too low for a network that halves it five times
        (PHOTO, 1_000_000, "cpu", None, "resnet18"),
        (PHOTO, 19_999, "cuda", None, "resnet18"),
        (PHOTO, 20_000, "cuda", None, "resnet50"),
        (PHOTO, 100, "cuda", "imagenet", "resnet50"),
        (PHOTO, 100, "cpu", "imagenet", "resnet18"),
        ((32, 32), 50_000, "cpu", "imagenet", "resnet18"),  # there are none of the CIFAR family
    ],
)
def test_the_network_fits_images_and_device(
    digits: Source, size: tuple[int, int], images: int, device: Device, weights: str | None, model: str
) -> None:
    settled, notes = check(images_of(digits, size, images), device, weights=weights)
    assert settled.model == model
    assert notes[0].startswith(f"--model {model}: ")
    assert ("pretrained weights, on a" if weights else f"{image_size(*size)} pixels") in notes[0]
    asked, notes = check(images_of(digits, size, images), device, weights=weights, model="plain56")
    assert asked.model == "plain56"
    assert not any("--model" in note for note in notes)


def test_photos_with_weights_get_the_recipe_and_whatever_is_typed_counts(digits: Source, tmp_path: Path) -> None:
    photos, recipe = images_of(digits, PHOTO), read_recipe("finetune")
    settled, notes = check(photos, weights="imagenet")
    assert {name: getattr(settled, name) for name in recipe} == recipe
    assert settled.recipe == "finetune"
    assert settled.batch_size == 16  # as without a recipe: for 11 steps an epoch or more
    assert "--recipe finetune: photos and pretrained weights." in notes

    # Also where it is the default, and where the recipe's other options do not go with it.
    default = TrainConfig.default("lr")
    settled, _ = check(photos, weights="imagenet", lr=default, schedule="one-cycle", momentum=0.0)
    assert (settled.lr, settled.schedule, settled.momentum) == (default, "one-cycle", 0)
    assert (settled.warmup_ratio, settled.nesterov) == (0, False)
    assert settled.ema == recipe["ema"]
    settled, _ = check(photos, recipe="torchvision", crop_padding=8)
    assert (settled.crop_padding, settled.random_resized_crop) == (8, False)
    (mine := tmp_path / "mine.toml").write_text("trivial_augment = true\n")
    settled, _ = check(photos, recipe=str(mine), rand_augment="2,9")
    assert (settled.rand_augment, settled.trivial_augment) == ("2,9", False)


@pytest.mark.parametrize("steps", [100, 200, 1000])
def test_the_average_of_a_short_training_is_of_its_last_steps(steps: int) -> None:
    """Not of the weights that it began with, as 0.999 of each step before would be: 82% after 200 steps."""
    average = ExponentialMovingAverage(nn.Linear(1, 1), read_recipe("finetune")["ema"])
    shares = [1.0]  # of the weights before the first step, then of those after each
    for step in range(steps):
        kept = average.decay_after(step)
        shares = [share * kept for share in shares] + [1 - kept]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] < 1e-6
    assert sum(share * (steps - after) for after, share in enumerate(shares)) < steps / 8


@pytest.mark.parametrize(
    ("size", "options"),
    [(PHOTO, {}), ((64, 64), {"weights": "mine"}), (PHOTO, {"weights": "imagenet", "recipe": "torchvision"})],
)
def test_others_get_no_recipe(digits: Source, size: tuple[int, int], options: dict[str, str]) -> None:
    settled, notes = check(images_of(digits, size), **options)
    assert settled.recipe == options.get("recipe")
    assert settled.lr / settled.batch_size == (0.1 / 256 if options.get("recipe") else 0.1 / 128)
    assert not any("--recipe" in note for note in notes)


def test_a_training_that_goes_on_keeps_what_it_began_with(digits: Source) -> None:
    began = configure(data="photos", weights="imagenet", model="resnet18")
    assert check_training(began, "cpu", images_of(digits, PHOTO), resumes=True)[1].recipe is None


@pytest.mark.parametrize(
    ("images", "options", "lr", "usual"),
    [
        (320, {}, 0.1 * 16 / 128, "0.1 for 128"),
        (320, {"batch_size": 64}, 0.05, "0.1 for 128"),
        (20_000, {}, 0.1, None),
        (20_000, {"batch_size": 256}, 0.1, None),
        (320, {"lr": 0.1}, 0.1, None),
        (320, {"recipe": "fast"}, 0.2 * 16 / 128, "0.2 for 128"),
        (320, {"recipe": "imagenet"}, 0.4 * 16 / 1024, "0.4 for 1024"),
        (320, {"recipe": "fast", "batch_size": 64}, 0.1, "0.2 for 128"),
        (320, {"recipe": "fast", "lr": 0.2}, 0.2, None),
        (20_000, {"recipe": "fast"}, 0.2, None),
        (320, {"weights": "imagenet"}, 0.01, None),
        (320, {"optimizer": "adamw"}, 0.001, None),
    ],
)
def test_smaller_batches_have_a_smaller_default_learning_rate(
    digits: Source, images: int, options: dict[str, object], lr: float, usual: str | None
) -> None:
    settled, notes = check(images_of(digits, PHOTO, images), **options)
    assert settled.lr == pytest.approx(lr)
    said = [f"--lr {lr:g}: in proportion to the batch, {usual}."] if usual else []
    assert [note for note in notes if "--lr" in note] == said


@pytest.mark.parametrize("recipe", recipe_names())
def test_many_images_have_a_recipes_own_batch_and_learning_rate(digits: Source, recipe: str) -> None:
    settled, _ = check(images_of(digits, PHOTO, 20_000), recipe=recipe, weights="imagenet")
    own = read_recipe(recipe)
    assert {name: getattr(settled, name) for name in own} == own


@pytest.mark.parametrize(
    ("options", "unusual"),
    [
        ({}, {}),
        ({"image_size": 128, "resize": 150}, {"image_size": "128", "resize": "150"}),
        ({"batch_size": 16, "shortcut": "B", "stream": "on"}, {}),  # the first as by default, the others told apart
        ({"recipe": "fast", "optimizer": "adamw"}, {"recipe": "fast", "optimizer": "adamw"}),
        *(
            (given, given)
            for given in (
                {"val_data": "test", "test_fraction": 0.1, "select": "loss", "seed": 3},
                {"lr": 0.1, "flip": True, "crop_padding": 4},  # the defaults of other images
                {"batch_size": 128},
                {"weights": "imagenet", "recipe": "finetune", "freeze_batchnorm": False, "batch_size": 8},
                {"recipe": "fast", "epochs": 40},
                {"optimizer": "adamw", "lr": 0.1},
            )
        ),
    ],
)
def test_options_that_were_settled_by_the_images_are_not_told_as_if_given(
    options: dict[str, object], unusual: dict[str, object], digits: Source
) -> None:
    source = images_of(digits, PHOTO, 252)
    config, _ = check(source, **options)
    assert unusual_options(record(config=config, data=source.record)) == unusual


@pytest.mark.parametrize(("images", "is_high"), [(320, False), (20_000, True)])
def test_a_high_learning_rate_for_weights_is_warned_of(digits: Source, images: int, is_high: bool) -> None:
    requested = configure(data="photos", weights="mine", model="resnet20")
    _, settled = check_training(requested, "cpu", images_of(digits, (32, 32), images))
    observer = Notes()
    report_defaults(requested, settled, "cpu", observer)
    assert any("is high for pretrained weights" in note for note in observer.notes) == is_high


def test_few_photos_from_scratch_are_told_of_weights_and_others_are_not(digits: Source) -> None:
    def hinted(size: tuple[int, int], images: int, **options: object) -> bool:
        hint = suggest_weights(configure(data="photos", **options), images_of(digits, size, images).record)
        return hint is not None and "--weights imagenet begins" in hint

    assert hinted(PHOTO, 320)
    assert hinted(PHOTO, 19_999, model="resnet50")
    assert not hinted(PHOTO, 20_000)
    assert not hinted(PHOTO, 320, weights="imagenet")
    assert not hinted((32, 32), 320)
    assert check(digits, data="digits")[1] == []  # the demo says what it always did


def test_a_search_has_networks_and_learning_rates_for_its_images(digits: Source, tmp_path: Path) -> None:
    def settle(source: Source, config: TuneConfig, *pairs: str, device: Device = "cpu", **options: object) -> dict:
        settled, _ = check(source, device, **options)
        space = settle_space(read_space(config, pairs), settled, source.record, device)
        return {**space.searched, **space.fixed}

    photos, small = images_of(digits, PHOTO), images_of(digits, (32, 32))
    assert settle(small, TuneConfig())["depth"] == Choices((8, 14, 20, 32))
    for device in ("cpu", "cuda"):
        found = settle(photos, TuneConfig(), device=device)
        assert found["model"] == Choices(PHOTO_NETWORKS[device])
        assert not {"depth", "family"} & found.keys()
        assert (found["lr"].low, found["lr"].high) == pytest.approx((0.01 / 8, 1 / 8))  # batches of 16, not of 128
    assert settle(photos, TuneConfig(), "batch_size=16,32")["lr"].high == 1
    found = settle(photos, TuneConfig(), weights="imagenet")
    assert (found["model"], found["lr"]) == ("resnet18", FINETUNE_LR)
    adamw = TuneConfig(given={"optimizer": "adamw"})
    assert settle(photos, adamw, weights="imagenet", optimizer="adamw")["lr"] == ADAMW_RATES
    assert settle(photos, TuneConfig(), "model=resnet20,plain8")["model"] == Choices(("resnet20", "plain8"))
    assert settle(photos, TuneConfig(), "lr=0.2,0.3", weights="imagenet")["lr"] == Choices((0.2, 0.3))
    assert settle(photos, TuneConfig(depths="8,14,20,32"))["depth"] == Choices((8, 14, 20, 32))  # typed
    file = tmp_path / "space.toml"
    file.write_text('depths = [8, 14, 20, 32]\nlr = "0.01:1"\n')
    found = settle(photos, TuneConfig(space=file), weights="imagenet")
    assert (found["depth"], found["lr"].high) == (Choices((8, 14, 20, 32)), 1)
    assert settle(photos, TuneConfig(), "model=auto")["model"] == "resnet18"
    assert settle(photos, TuneConfig(), "model=auto,resnet18,resnet34")["model"] == Choices(("resnet18", "resnet34"))


def test_the_network_of_weights_is_theirs(trained: TrainResult) -> None:
    config = TrainConfig.of(runs_dir=trained.run.path.parent, weights="trained")
    settled, weights = start_weights(config, "cpu", Observer())
    assert weights is not None
    assert settled.model == weights.info.model == "resnet8"
    with pytest.raises(UserError, match="has the weights of resnet8, not of resnet20"):
        start_weights(config.model_copy(update={"model": "resnet20"}), "cpu", Observer())


def test_the_name_of_a_network_is_looked_at_before_the_images() -> None:
    with pytest.raises(UserError, match="Unknown network 'atuo'"):
        check_training(TrainConfig.of(model="atuo", data="/nowhere"), "cpu")


def test_the_learning_rate_of_a_new_head_is_not_that_of_the_weights_own() -> None:
    implied, settled = TrainConfig.of(weights="mine"), TrainConfig.of(weights="mine", head_lr=10)
    kept, new = (StartRecord(origin="run mine", sha256="0", head=head) for head in ("kept", "new"))
    rates = {start: settle_head(implied, settled, start).head_lr for start in (kept, new, None)}
    assert rates == {kept: 1.0, new: 10.0, None: 10.0}
    assert settle_head(settled, settled, kept).head_lr == 10.0  # as typed
