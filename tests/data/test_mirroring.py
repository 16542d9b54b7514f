"""Images that mirroring harms are not mirrored by default, which is said."""

from pathlib import Path

import pytest

from resnet_ops.config import TrainConfig
from resnet_ops.data.class_labels import mirroring_harm
from resnet_ops.recipes.reading import configure
from resnet_ops.training.defaults import explain_choices, warn_of_mirroring
from resnet_ops.training.preflight import check_training
from tests.data.samples import noise, shades, write_class_folders, write_parquet
from tests.notes import Notes


@pytest.mark.parametrize(
    "names",
    [
        "0 1 2 3 4 5 6 7 8 9", "10 11 12 13", "b d", "A B C none", "zero one two", "digit_1 digit_7 other",
        "Letter-A Letter-b",
        "left right", "left_turn right_turn straight", "TurnLeft TurnRight", "clockwise counterclockwise",
        "hand-left hand-right cup",
    ],
)  # fmt: skip
def test_names_tell_that_mirrored_images_are_others(names: str) -> None:
    assert mirroring_harm(names.split())


@pytest.mark.parametrize(
    "names",
    [
        "cat dog", "bright dark", "left cat", "copyright free", "a cat dog", "n01440764 n01443537",
        "onear sevenfold", "airplane automobile bird cat deer dog frog horse ship truck",
    ],
)  # fmt: skip
def test_names_of_things_tell_nothing(names: str) -> None:
    assert mirroring_harm(names.split()) is None


@pytest.mark.parametrize(
    ("names", "flip", "settled", "said"),
    [
        (("3", "5"), None, False, "--flip off: no mirroring, as class names are numbers (3, 5)"),
        (("b", "d"), None, False, "as classes are digits or letters (b, d)"),
        (("3", "5"), True, True, "--no-flip"),
        (("3", "5"), False, False, None),
        (("left", "right"), None, False, "class left mirrored may be class right"),
        (("cat", "dog"), None, True, None),
    ],
)
def test_own_images_are_mirrored_by_default_unless_their_names_speak_against_it(
    tmp_path: Path, names: tuple[str, str], flip: bool | None, settled: bool, said: str | None
) -> None:
    write_class_folders(tmp_path, shades(dict.fromkeys(names, 100), 6, (16, 16)))
    config, notes = TrainConfig.of(data=str(tmp_path), flip=flip, batch_size=4), Notes()
    source, checked = check_training(config, "cpu")
    assert checked.flip is settled
    warn_of_mirroring(config, source.record, notes)
    notes.notes += map(str, explain_choices(config, checked, source.record, "cpu"))
    notes.notes = [message for message in notes.notes if "flip" in message]
    assert (said is None) == (not notes.notes)
    assert said is None or said in notes.notes[0]
    assert checked.augmentation(None) == "random crop (padding 2)" + (", horizontal flip" if settled else "")


def test_augmentation_is_told_in_words() -> None:
    none = {"crop_padding": 0, "flip": False}
    assert configure(**none).augmentation(None) == "none"
    assert configure(**none).augmentation((256, 256)) == "random crop from 256x256"
    assert (
        configure(crop_padding=4, flip=True).augmentation((256, 256))
        == "random crop from 256x256 (padding 4), horizontal flip"
    )
    mixed = {"random_resized_crop": True, "mixup": 0.2, "cutmix": 1.0, "cutout": 8}
    assert configure(crop_padding=4, flip=False, **mixed).augmentation((256, 256)) == (
        "random resized crop, cutout 8, MixUp 0.2, CutMix 1"
    )


def test_numbers_that_stand_for_missing_names_tell_nothing(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "a.parquet", noise(20), [0, 1] * 10, names=())
    config, notes = TrainConfig.of(data=str(data), batch_size=4), Notes()
    source, checked = check_training(config, "cpu")
    warn_of_mirroring(config, source.record, notes)
    assert (source.record.class_names, checked.flip, notes.notes) == (("0", "1"), True, [])
    assert mirroring_harm(["0", "1", "2", "10"]) == "class names are numbers (0, 1, 2...)"


def test_mirrored_digits_are_warned_of_only_where_mirroring_was_asked_for() -> None:
    for flip, said in ((None, 0), (True, 1), (False, 0)):
        config, notes = TrainConfig.of(flip=flip), Notes()
        warn_of_mirroring(config, check_training(config, "cpu")[0].record, notes)
        assert len(notes.notes) == said
