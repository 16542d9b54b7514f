"""Boxes are cut and resized as Pillow and torchvision do it, image by image and as a whole batch."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchvision.transforms import v2

from resnet_ops.data import resize
from resnet_ops.data.crops import fit_boxes
from tests.data.test_loader import pixels

WAYS = [resize.resize_each, resize.resize_all]


def boxes_of(n: int, h: int, w: int) -> Tensor:
    """Boxes of all sizes, the smallest and the largest among them, and which of them to mirror."""
    random = np.random.default_rng(3)
    sizes = random.integers(1, (h + 1, w + 1), (n, 2))
    sizes[:4] = (1, 1), (h, w), (1, w), (h, 1)
    return torch.from_numpy(np.hstack([random.integers(0, (h + 1, w + 1) - sizes), sizes]))


def levels_apart(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("resized", WAYS)
@pytest.mark.parametrize(
    ("h", "w", "c", "size"),
    [(32, 32, 3, (32, 32)), (48, 40, 3, (28, 36)), (16, 21, 1, (24, 24)), (300, 90, 3, (9, 50))],
)
def test_boxes_are_resized_as_by_pillow_and_torchvision(
    resized: resize.Resize, h: int, w: int, c: int, size: tuple[int, int]
) -> None:
    x, boxes = pixels(40, h, w, c), boxes_of(40, h, w)
    x[::3] = x[::3] // 128 * 255  # black and white, where each rounding error is largest
    mirrored = torch.arange(40) % 2 == 1
    before = x.clone()
    ours = resized(x, boxes, mirrored, size)
    assert torch.equal(x, before)
    assert ours.is_contiguous()
    assert ours.dtype == torch.uint8
    for image, box, mirror, our in zip(x, boxes.tolist(), mirrored, ours, strict=True):
        their = v2.functional.resized_crop(image.permute(2, 0, 1), *box, list(size), antialias=True).permute(1, 2, 0)
        top, left, high, wide = box
        cut = image[top : top + high, left : left + wide].numpy()
        of_pillow = Image.fromarray(cut.squeeze(2) if c == 1 else cut).resize(size[::-1], Image.Resampling.BILINEAR)
        our = our.flip(1) if mirror else our
        assert levels_apart(our, their) <= (0 if resized is resize.resize_each else 1)
        assert levels_apart(our, torch.from_numpy(np.array(of_pillow)).view(*size, c)) <= 1


def test_a_whole_batch_is_as_exact_in_half_of_the_mantissa() -> None:
    """TF32, which a GPU may use for matrix products in fp32, has 11 bits: simulated by rounding what is multiplied."""
    x, boxes = pixels(20, 64, 48, 3) // 128 * 255, boxes_of(20, 64, 48)
    mirrored = torch.zeros(20, dtype=torch.bool)
    exact = resize.resize_all(x, boxes, mirrored, (40, 30))

    class Rounded(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func in (torch.Tensor.bmm, torch.einsum):
                args = tuple(part.to(torch.float16).float() if isinstance(part, Tensor) else part for part in args)
            return func(*args, **(kwargs or {}))

    with Rounded():
        rounded = resize.resize_all(x, boxes, mirrored, (40, 30))
    assert not torch.equal(rounded, exact)
    assert levels_apart(rounded, exact) == 1


def test_threads_change_neither_the_images_nor_torchs_threads() -> None:
    x, boxes, mirrored = pixels(50, 24, 20, 3), boxes_of(50, 24, 20), torch.arange(50) % 3 == 0
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        one = resize.crop_and_resize(x, boxes, mirrored, (18, 18))
        torch.set_num_threads(5)
        several = resize.crop_and_resize(x, boxes, mirrored, (18, 18))
        assert torch.get_num_threads() == 5
        started = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        started.start()
        started.join()
        assert found == [5]
        assert {*resize._threads(5).map(lambda _: torch.get_num_threads(), range(20))} == {1}
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, several)
    assert torch.equal(resize.crop_and_resize(x[:3], boxes[:3], mirrored[:3], (18, 18)), one[:3])


def test_a_gpu_neither_waits_for_the_host_nor_mixes_its_tensors_with_the_hosts() -> None:
    """As a CUDA graph needs it: torch's fake tensors raise for what depends on values, and for tensors of a CPU."""

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    with FakeTensorMode():
        draws = {"shares": empty(8, 10), "ratios": empty(8, 10), "places": empty(8, 2)}
        boxes = fit_boxes(draws, 32, 32, empty(8, dtype=torch.float32))
        x, mirrored = empty(8, 32, 32, 3, dtype=torch.uint8), empty(8, dtype=torch.bool)
        resized = resize.crop_and_resize(x, boxes, mirrored, (24, 20))
        assert (resized.device.type, resized.dtype, resized.shape) == ("cuda", torch.uint8, (8, 24, 20, 3))
        assert resized.is_contiguous()
        with pytest.raises(DataDependentOutputException):
            resize.resize_each(x, boxes, mirrored, (24, 20))
