"""The trainings of a study."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_ops.errors import UserError
from resnet_ops.study import plan
from resnet_ops.study.config import StudyConfig


def points(**options: object) -> list[dict[str, object]]:
    return list(plan.search_space(StudyConfig.of(**options)).points)


def test_every_network_from_every_seed_the_deepest_first() -> None:
    planned = points(depths="8,20", seeds=2, lr=0.3, given={"seed": 5})
    assert [(p["family"], p["depth"], p["seed"], p["lr"]) for p in planned] == [
        ("plain", 20, 5, 0.3), ("resnet", 20, 5, 0.3), ("plain", 8, 5, 0.3), ("resnet", 8, 5, 0.3),
        ("plain", 20, 6, 0.3), ("resnet", 20, 6, 0.3), ("plain", 8, 6, 0.3), ("resnet", 8, 6, 0.3),
    ]  # fmt: skip


def test_what_is_typed_overrides_the_recipe_and_the_recipe_the_defaults() -> None:
    assert plan.shared_options(StudyConfig.of(lr=0.1)) == {
        "epochs": 12,
        "lr": 0.1,
        "crop_padding": 0,
    }  # digits are left whole
    assert plan.shared_options(StudyConfig.of(given={"data": "cifar10"})) == {
        "data": "cifar10",
        "epochs": 12,
        "lr": 0.05,
    }
    assert plan.shared_options(StudyConfig.of(epochs=3, given={"recipe": "paper"}))["epochs"] == 3
    assert plan.shared_options(StudyConfig.of(given={"recipe": "paper"})) == {"recipe": "paper"}
    assert {point["lr"] for point in points(given={"recipe": "paper"})} == {0.1}


def test_the_papers_recipe_warms_the_deepest_up_and_no_other_does() -> None:
    planned = points(depths="56,110", given={"recipe": "paper"}, seeds=1)
    assert {p["depth"]: p.get("warmup_ratio", 0) * 64_000 for p in planned} == {56: 0, 110: 400}
    assert all("warmup_ratio" not in p for p in points(depths="110"))


def test_baselines_are_trained_where_the_images_are_large_enough(tmp_path: Path) -> None:
    """At 40 pixels a side: VGG and GoogLeNet, VGG with a lower learning rate; on digits none."""
    for name in ("light", "dark"):
        for number in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            shade = np.full((40, 40, 3), 20 * number + (128 if name == "light" else 0), np.uint8)
            Image.fromarray(shade).save(tmp_path / name / f"{number}.png")
    warnings: list[str] = []
    config = StudyConfig.of(depths="8", seeds=1, lr=0.1, baselines=True, given={"data": str(tmp_path)})
    planned = plan.search_space(config, warnings.append).points
    assert [(p["family"], p["lr"]) for p in planned] == [
        ("googlenet", 0.1), ("vgg", 0.01), ("plain", 0.1), ("resnet", 0.1),
    ]  # fmt: skip
    assert warnings == ["Skipping alexnet8: it needs images of at least 63x63 pixels."]
    warnings.clear()
    assert len(plan.search_space(StudyConfig.of(baselines=True, seeds=1), warnings.append).points) == 8
    assert len(warnings) == 3
    with pytest.raises(UserError, match="--baselines applies to the degradation study only"):
        points(study="responses", baselines=True)


def test_imagenet_networks_have_the_plain_ones_parameters() -> None:
    planned = points(depths="18,34", seeds=1)
    assert {(p["family"], p.get("shortcut")) for p in planned} == {("plain", None), ("resnet", "A")}


def test_shortcuts_are_compared_at_each_depth() -> None:
    planned = points(study="shortcuts", depths="8,14", options="A,C", seeds=1)
    assert [(p["family"], p["depth"], p["shortcut"]) for p in planned] == [
        ("resnet", 14, "A"), ("resnet", 14, "C"), ("resnet", 8, "A"), ("resnet", 8, "C"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": "8,21"}, "--depths: resnet21 is not a valid depth"),
        ({"depths": "eight"}, "--depths: 'eight' is not a depth"),
        ({"depths": "8,8"}, "--depths 8,8 contains a duplicate"),
        ({"options": "A,B"}, "--options selects shortcuts to compare"),
        ({"study": "shortcuts", "options": "A,D"}, "--options: 'D' is not a shortcut"),
        ({"seeds": 0}, "--seeds"),
    ],
)
def test_what_cannot_be_studied_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        points(**options)
    assert message in str(refused.value)


@pytest.mark.parametrize("option", [{"patience": 3}, {"max_time": "1h"}, {"target_accuracy": 90}])
def test_trainings_of_a_study_are_of_one_length(option: dict[str, object]) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}: a study compares trainings of one length"):
        points(depths="8", given=option)


def test_networks_of_a_study_begin_at_random() -> None:
    with pytest.raises(UserError, match="--weights: a study compares networks that are trained from scratch"):
        points(study="shortcuts", depths="20", options="A", given={"weights": "mine"})
