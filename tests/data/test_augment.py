"""Each augmentation does to a batch what its reference does to one image."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2

from resnet_ops.data import crops, erasing, mixing, resize
from resnet_ops.data.augment import Augmentation, Normalizer
from resnet_ops.data.decode import CropSpec, decode_with_aspect
from tests.data.samples import encode_pixels
from tests.data.test_loader import pixels

NORMALIZER = Normalizer((0.49, 0.48, 0.45), (0.2, 0.21, 0.26), torch.device("cpu"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crop_and_flip(
    x: torch.Tensor, padding: int, flip: bool, source: torch.Generator, side: int | None = None
) -> torch.Tensor:
    size = (x.shape[1], x.shape[2])
    crop = (side, side) if side else size
    draws = crops.draw_crops(len(x), size, crop, padding, flip, source)
    return crops.crop_and_flip(x, draws["corners"], draws["mirrored"], padding, crop)


def test_a_smaller_crop_is_a_part_of_its_image() -> None:
    x = pixels(60, 9, 8, 3)
    seen = set()
    for image, crop in zip(x, crop_and_flip(x, 0, True, generator(), 5), strict=True):
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(4)
            for mirrored in (False, True)
            for cut in [image[top : top + 5, left : left + 5]]
            if torch.equal(cut.flip(1) if mirrored else cut, crop)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 25


def test_large_images_are_cropped_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def cropped(gathered: int, padding: int, side: int | None) -> torch.Tensor:
        monkeypatch.setattr(crops, "MAX_GATHER_PIXELS", gathered)
        return crop_and_flip(x, padding, True, generator(3), side)

    for channels, padding, side in ((3, 4, None), (1, 0, 12), (3, 2, 20)):
        x = pixels(16, 22, 20, channels)
        assert torch.equal(cropped(0, padding, side), cropped(10**9, padding, side))


def test_half_of_the_resized_crops_are_mirrored() -> None:
    x = pixels(30, 48, 40, 3)
    plain = crops.random_resized_crop(x, crops.draw_boxes(30, False, generator()), (28, 36))
    flipped = crops.random_resized_crop(x, crops.draw_boxes(30, True, generator()), (28, 36))
    is_mirror = []
    for image, mirrored in zip(plain, flipped, strict=True):
        is_mirror.append(torch.equal(mirrored, image.flip(1)))
        assert is_mirror[-1] != torch.equal(mirrored, image)
    assert 5 < sum(is_mirror) < 25


@pytest.mark.parametrize(("size", "stored"), [((64, 48), (64, 48)), ((640, 480), (256, 256))])
def test_parts_are_drawn_as_torchvision_draws_them_in_the_image_as_it_was(
    size: tuple[int, int], stored: tuple[int, int]
) -> None:
    n, (h, w) = 4000, size
    boxes = crops.fit_boxes(crops.draw_boxes(n, False, generator()), *stored, torch.full((n,), w / h))
    top, left, high, wide = boxes.numpy().T * np.array([h, w, h, w])[:, None] / np.array([*stored, *stored])[:, None]
    torch.manual_seed(0)
    image = torch.empty(3, h, w)
    params = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    their_top, their_left, their_high, their_wide = np.array(params, float).T
    assert ((top >= 0) & (left >= 0) & (top + high <= h) & (left + wide <= w)).all()
    for ours, theirs in (
        (high * wide, their_high * their_wide),
        (np.log(wide / high), np.log(their_wide / their_high)),
        (top / (h - high + 1), their_top / (h - their_high + 1)),
        (left / (w - wide + 1), their_left / (w - their_wide + 1)),
    ):
        error = math.hypot(ours.std(), theirs.std()) / math.sqrt(n)
        assert abs(ours.mean() - theirs.mean()) < 4 * error
        assert ours.std() == pytest.approx(theirs.std(), rel=0.07)


@pytest.mark.parametrize(("h", "w"), [(10, 2000), (2000, 10)])
def test_where_no_part_fits_the_middle_is_taken(h: int, w: int) -> None:
    draws = crops.draw_boxes(20, False, generator())
    boxes = crops.fit_boxes(draws, h, w).tolist()
    expected = RandomResizedCrop.get_params(torch.empty(3, h, w), [0.08, 1.0], [3 / 4, 4 / 3])
    assert boxes == [list(expected)] * 20
    stored = crops.fit_boxes(draws, 256, 256, torch.full((20,), w / h)).tolist()
    assert stored == stored[:1] * 20
    for side, wanted, length in zip(stored[0], expected, (h, w, h, w), strict=True):
        assert abs(side - wanted * 256 / length) <= 1.5  # rounded, and at least a pixel


def test_boxes_of_images_kept_whole_show_what_torchvision_cuts_out_of_the_originals() -> None:
    rough = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    photo = Image.fromarray(rough).resize((600, 400), Image.Resampling.BICUBIC)
    stored, aspect = decode_with_aspect(encode_pixels(np.asarray(photo)), CropSpec((256, 256), 256, 256, 3, whole=True))
    boxes = crops.fit_boxes(crops.draw_boxes(60, False, generator()), 256, 256, torch.full((60,), aspect))
    ours = resize.crop_and_resize(
        torch.from_numpy(stored.copy()).expand(60, -1, -1, -1), boxes, torch.zeros(60, dtype=torch.bool), (224, 224)
    )
    original = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    in_original = (boxes * torch.tensor([400, 600, 400, 600]) / 256).round().int().tolist()
    for our, (top, left, high, wide) in zip(ours, in_original, strict=True):
        assert high * wide / 240_000 == pytest.approx(0.54, abs=0.48)
        assert 0.7 < wide / high < 1.4
        their = v2.functional.resized_crop(original, top, left, high, wide, [224, 224], antialias=True)
        assert (our.int() - their.permute(1, 2, 0).int()).abs().float().mean() < 2
    assert min(left for _, left, _, _ in in_original) < 60  # outside of the square at the center


@pytest.mark.parametrize("side", [1, 4, 5, 9])
def test_cutout_blanks_one_square(side: int) -> None:
    x = torch.ones(300, 3, 9, 12)
    ours = erasing.cutout(x.clone(), erasing.draw_squares(300, (9, 12), side, generator())["squares"], side)
    candidates = set()
    for row in range(9):
        for column in range(12):
            image = np.ones((9, 12), np.float32)
            top, left = row - side // 2, column - side // 2
            image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
            candidates.add(image.tobytes())
    squares = set()
    for image in ours:
        assert (image == image[0]).all()
        squares.add(image[0].numpy().tobytes())
    assert squares <= candidates
    assert len(squares) > 0.8 * len(candidates)


def test_mixup_is_torchvisions() -> None:
    x, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 2, 1, 0])
    soft = torch.nn.functional.one_hot(labels, 4).float()
    mixed, y = mixing.mix(x.clone(), soft, mixing.draw_mixing(0.4, 0.0, (8, 8), generator()))
    share = float(y[1, 1])  # of image 1 of class 1, blended with image 0 of class 0
    params = {"labels": labels, "batch_size": 6, "lam": share}
    theirs = v2.MixUp(alpha=0.4, num_classes=4)
    torch.testing.assert_close(mixed, theirs.transform(x, params))
    torch.testing.assert_close(y, theirs.transform(labels, params))


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_is_torchvisions(seed: int) -> None:
    x, labels = torch.arange(6.0)[:, None, None, None].expand(6, 3, 10, 14).contiguous(), torch.arange(6)
    mixed, y = mixing.mix(x.clone(), torch.eye(6), mixing.draw_mixing(0.0, 1.0, (10, 14), generator(seed)))
    rows, columns = torch.nonzero(mixed[1, 0] == 0, as_tuple=True)  # where image 0 lies in image 1
    box = (0, 0, 0, 0)
    if len(rows):
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 140
    theirs = v2.CutMix(alpha=1.0, num_classes=6)
    params = {"labels": labels, "batch_size": 6, "box": box, "lam_adjusted": share}
    torch.testing.assert_close(mixed, theirs.transform(x, params))
    torch.testing.assert_close(y, theirs.transform(labels, params))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    source = generator()
    drawn = np.array([mixing._beta(alpha, source) for _ in range(2000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert drawn.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 2000))
    assert drawn.var() == pytest.approx(variance, rel=0.1)


def test_with_both_each_batch_is_blended_or_pasted() -> None:
    both = Augmentation(mixup=1.0, cutmix=1.0, classes=6)
    x = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 8, 8, 1).contiguous() * 40
    blended = 0
    for seed in range(40):
        draws = both.draw(6, (8, 8), generator(seed))
        out, y = both(x, torch.arange(6), draws, Normalizer((0.0,), (1 / 255,), x.device))
        torch.testing.assert_close(y.sum(1), torch.ones(6))
        torch.testing.assert_close(out.mean((1, 2, 3)), y @ (torch.arange(6.0) * 40), atol=1e-3, rtol=0)
        blended += bool((out == out[:, :, :1, :1]).all() and 0 < y[1, 1] < 1)
    assert 10 < blended < 30


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_padding=2, flip=True, cutout=3),
        Augmentation(random_resized_crop=True, flip=True, size=(6, 7), mixup=0.3, classes=5),
        Augmentation(cutmix=1.0, cutout=2, classes=5),
    ],
    ids=["crop", "resize", "cutmix"],
)
def test_the_same_generator_gives_the_same_batch(augmentation: Augmentation) -> None:
    x, y = pixels(20, 8, 8, 3), torch.arange(20) % 5
    before = x.clone()
    one, labels = augmentation(x, y, augmentation.draw(20, (8, 8), generator()), NORMALIZER)
    again, same = augmentation(x, y, augmentation.draw(20, (8, 8), generator()), NORMALIZER)
    assert torch.equal(one, again)
    assert torch.equal(labels, same)
    assert torch.equal(x, before)  # the stored images
    assert one.shape == (20, 3, *(augmentation.size or (8, 8)))
    assert one.is_contiguous(memory_format=torch.channels_last)
    others = augmentation.draw(20, (8, 8), generator(1))
    assert not torch.equal(one, augmentation(x, y, others, NORMALIZER)[0])
    # What is drawn for many batches is kept in rows.
    assert [(name, each.shape, each.dtype) for name, each in others.items()] == [
        (name, each.shape, each.dtype) for name, each in augmentation.draw(20, (8, 8), generator(2)).items()
    ]
