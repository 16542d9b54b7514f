"""Results are compared with published numbers only where data and recipe are the paper's."""

from resnet_ops.recipes.reading import configure
from resnet_ops.study.results import CIFAR_10, published_errors
from tests.study.samples import DATA

CIFAR = DATA.model_copy(
    update={
        "class_names": tuple(sorted(CIFAR_10)), "train_images": 50_000, "val_images": 10_000, "channels": 3,
        "height": 32, "width": 32,
    }
)  # fmt: skip


def test_cifar10_with_the_papers_recipe() -> None:
    published = published_errors(CIFAR, configure(recipe="paper"))
    assert published is not None
    assert "table 6" in published.source
    assert published.error("resnet56", "A") == 0.0697
    assert published.error("resnet56", "B") is None  # another network
    assert published.error("plain56", None) is None  # only drawn in the paper
    for changed in ({"epochs": 30}, {"lr": 0.2}, {"batch_size": 256}, {"schedule": "cosine"}):
        assert published_errors(CIFAR, configure(recipe="paper", **changed)) is None
    assert published_errors(CIFAR, configure()) is None
    assert published_errors(DATA, configure(recipe="paper")) is None


def test_imagenet_says_what_differs() -> None:
    imagenet = DATA.model_copy(
        update={"class_names": tuple(map(str, range(1000))), "val_images": 50_000, "stored": 256, "height": 224}
    )
    published = published_errors(imagenet, configure(recipe="torchvision"))
    assert published is not None
    assert "10-crop testing; here a single crop" in published.source
    assert [published.error(m, s) for m, s in (("plain34", None), ("resnet34", "A"), ("resnet18", "B"))] == [
        0.2854, 0.2503, None,
    ]  # fmt: skip
