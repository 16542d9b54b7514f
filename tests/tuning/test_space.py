"""The search space as it is typed, and the points that are drawn from it."""

from pathlib import Path

import pytest

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.recipes.reading import configure
from resnet_ops.tuning import algorithms
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.space import Choices, Range, Space, read_space, train_options


def space(*pairs: str, **options: object) -> Space:
    return read_space(TuneConfig.of(**options), pairs)


def test_lists_ranges_and_single_values_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        'lr = 0.1\nweight_decay = "1e-5:1e-3"\nbatch_size = [64, 128]\nnesterov = true\nmilestones = "0.5,0.75"\n'
    )
    pairs = ("momentum=0.8:0.95", "batch-size=32,64", "class_weights=balanced,none")
    search_space = space(*pairs, depths="20,56", family="resnet,plain", space=file)
    assert search_space.searched == {
        "depth": Choices((20, 56)),
        "family": Choices(("resnet", "plain")),
        "class_weights": Choices(("balanced", "none")),
        "weight_decay": Range(1e-5, 1e-3, log=True, whole=False),
        "momentum": Range(0.8, 0.95, log=False, whole=False),
        "batch_size": Choices((32, 64)),  # what is typed goes before the file
    }
    assert search_space.fixed == {"lr": 0.1, "nesterov": True, "milestones": "0.5,0.75"}


def test_adamw_searches_smaller_learning_rates_unless_they_are_given() -> None:
    assert space("optimizer=adamw").searched["lr"] == Range(1e-4, 1e-2, log=True, whole=False)
    assert space("optimizer=adamw,sgd").searched["lr"] == Range(1e-4, 1.0, log=True, whole=False)
    assert space("optimizer=sgd").searched["lr"] == Range(0.01, 1.0, log=True, whole=False)
    assert space("optimizer=adamw", "lr=0.1,0.2").searched["lr"] == Choices((0.1, 0.2))
    assert space("optimizer=adamw", lr="0.01:1").searched["lr"] == Range(0.01, 1.0, log=True, whole=False)
    given = read_space(TuneConfig.of(given={"optimizer": "adamw"}))
    assert given.searched["lr"] == Range(1e-4, 1e-2, log=True, whole=False)


def test_what_fine_tuning_has_can_be_searched() -> None:
    pairs = (
        "freeze=none,stem,layer2", "freeze_epochs=0:3", "freeze_batchnorm=true,false", "head_lr=1:20",
        "precision=fp16,bf16", "gradient_checkpointing=true",
    )  # fmt: skip
    found = space(*pairs)
    assert found.searched["freeze"] == Choices(("none", "stem", "layer2"))
    assert found.searched["freeze_epochs"] == Range(0, 3, log=False, whole=True)
    assert found.searched["freeze_batchnorm"] == Choices((True, False))
    assert found.searched["head_lr"] == Range(1.0, 20.0, log=True, whole=False)
    assert found.fixed["gradient_checkpointing"] is True


def test_pbt_keeps_the_optimizer() -> None:
    config = TuneConfig.of(scheduler="pbt", depths="8")
    with pytest.raises(UserError, match="so all must have the same optimizer"):
        algorithms.build_scheduler(config, read_space(config, ["optimizer=sgd,adamw"]), 8)


def test_what_is_typed_goes_before_the_file_and_the_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('lr = "0.1:0.2"\ndepths = [8, 14]\n')
    search_space = space(space=file, lr="0.3:0.4")
    assert search_space.searched["lr"] == Range(0.3, 0.4, log=False, whole=False)
    assert search_space.searched["depth"] == Choices((8, 14))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("lr=1:0.1",), "lr=1:0.1: the range 1:0.1 is inverted"),
        (("lr=0.1:0.1",), "the range 0.1:0.1 is empty"),
        (("lr=0:1",), "lr=0:1 should be greater than 0; '0' was given"),
        (("weight_decay=0:1:log",), "a logarithmic range cannot start at 0"),
        (("lr=a,b",), "a number is needed"),
        (("lr=0.1:0.2:cubic",), "is not a range"),
        (("depths=8:20",), "List them: 8,14,20"),
        (("depths=eight",), "'eight' is not a depth"),
        (("family=vgg",), "Valid: resnet, plain"),
        (("weight_decy=1",), "there is no option 'weight_decy' to search. Did you mean weight_decay?"),
        (("data=cifar10",), "data is the same for all trials. Set it with --data"),
        (("stream=on,off",), "stream is the same for all trials. Set it in a file that --recipe names"),
        (("max_time=1m,2m",), "max_time is the same for all trials. Set it in a file that --recipe names"),
        (("class_weights=balanced,even",), "must be balanced, none, or CLASS=WEIGHT"),
        (("fit_all=true,false",), "fit_all is the same for all trials. Use --refit."),
        (("epochs=10,20",), "epochs is the same for all trials"),
        (("schedule=steps,stairs",), "schedule=steps,stairs cannot be 'stairs'"),
        (("batch_size=64,64",), "contains a duplicate"),
        (("accumulate=1,200",), "accumulate=1,200: --accumulate 200 splits a batch of 128 images into more"),
        (("lr",), "'lr' is not OPTION=VALUES"),
        (("depths=8", "lr=0.1"), "Nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(pairs: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        space(*pairs)
    assert message in str(refused.value)


def test_an_option_is_either_shared_or_searched() -> None:
    with pytest.raises(UserError, match="--batch-size is both fixed for all trials and searched"):
        space("batch_size=64,128", given={"batch_size": 32})


def test_a_point_is_a_training() -> None:
    point = {"depth": 56, "family": "plain", "lr": 0.3, "weight_decay": 0.001}
    config = configure(recipe="fast", epochs=3, **train_options(point))
    assert (config.model, config.lr, config.weight_decay, config.epochs) == ("plain56", 0.3, 0.001, 3)
    assert config.nesterov  # the recipe's


def test_the_same_seed_draws_the_same_trials_and_each_depth_equally_often() -> None:
    config = TuneConfig.of(trials=14)
    search_space = space()
    points = algorithms.draw_points(config, search_space, seed=3)
    assert points == algorithms.draw_points(config, search_space, seed=3)
    assert points[:6] == algorithms.draw_points(TuneConfig.of(trials=6), search_space, seed=3)
    assert [p["lr"] for p in points] != [p["lr"] for p in algorithms.draw_points(config, search_space, seed=4)]
    assert len(points) == 14
    counts = [[p["depth"] for p in points].count(depth) for depth in (8, 14, 20, 32)]
    assert sorted(counts) == [3, 3, 4, 4]
    rates = sorted(p["lr"] for p in points)
    assert 0.01 <= rates[0] < 0.1 < rates[-1] <= 1  # evenly over orders of magnitude
    assert len(set(rates)) == 14
    assert all(type(value) in (int, float, str) for p in points for value in p.values())  # JSON knows them


def test_a_grid_is_every_combination() -> None:
    search_space = space("weight_decay=1e-4,5e-4", depths="8,20", lr="0.01:1")
    config = TuneConfig.of(search="grid")
    points = algorithms.draw_points(config, search_space, seed=0)
    assert len(points) == algorithms.count_trials(config, search_space) == 2 * 2 * 5
    assert sorted({p["lr"] for p in points}) == [0.01, 0.03162, 0.1, 0.3162, 1.0]
    assert len({tuple(sorted(p.items())) for p in points}) == 20
    with pytest.raises(UserError, match="the grid has 20 combinations"):
        algorithms.count_trials(TuneConfig.of(search="grid", trials=7), search_space)


def test_pbt_is_refused_where_weights_could_not_be_copied() -> None:
    with pytest.raises(UserError, match="all must be the same network: depth cannot be searched"):
        algorithms.build_scheduler(TuneConfig.of(scheduler="pbt"), space(), epochs=10)
    algorithms.build_scheduler(TuneConfig.of(scheduler="pbt"), space(depths="8"), epochs=10)


def test_every_option_that_can_be_searched_is_one_of_train() -> None:
    from resnet_ops.tuning.space import TRAIN_OPTIONS

    assert set(TRAIN_OPTIONS) <= set(TrainConfig.model_fields)


def test_weights_of_classes_are_one_value() -> None:
    assert space("class_weights=cat=2,dog=0.5").fixed["class_weights"] == "cat=2,dog=0.5"
