"""Fine-tune a network on few images and measure it on images that chose nothing: python finetune_photos.py.

With photos of your own take their folder as `data` and `weights="imagenet"`. What stands here needs no download, and
half a minute on two CPU cores: a network that knows the digits 0 to 5 learns 6 to 9 from 20 images each.
Digits are so easy that both ways end alike; what photos gain is in docs/how-to/finetune.md.
"""

# %% Two folders with a subfolder for each class, as your own photos would lie.
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from resnet_ops import EvaluateConfig, TrainConfig, configure, evaluate, train
from resnet_ops.data.opening import open_source

folder = Path(mkdtemp(prefix="resnet-ops-example-"))
digits = open_source("digits").load("train")
written = dict.fromkeys(range(10), 0)
for pixels, label in zip(digits.pixels, digits.labels.tolist(), strict=True):
    kind, few = ("known", False) if label < 6 else ("photos", True)
    if few and written[label] == 30:
        continue
    written[label] += 1
    file = folder / kind / f"digit {label}" / f"{written[label]}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0]).save(file)

# %% The weights to begin with. With photos leave this out.
runs = folder / "runs"
train(TrainConfig(data=str(folder / "known"), model="resnet8", epochs=6, name="known", runs_dir=runs))

# %% Fine-tune them, and train as long from scratch. A third of the images are the test's: neither training sees them.
shared = {"data": str(folder / "photos"), "model": "resnet8", "epochs": 6, "test_fraction": 1 / 3, "runs_dir": runs}
fine_tuned = train(configure(**shared, name="fine-tuned", weights=str(runs / "known/best/model.safetensors")))
scratch = train(configure(**shared, name="scratch"))

# %% Compare them on the test images: metrics of each class, confusions, and a page with the mistakes.
for trained in (scratch, fine_tuned):
    tested = evaluate(EvaluateConfig(run=trained.run.name, runs_dir=runs, split="test"))
    print(f"{trained.run.name:10} {tested.top1:.1%} of {tested.images} test images, macro F1 {tested.macro_f1:.1%}")
    for worst in tested.worst_classes[:1]:
        print(f"{'':10} worst class: {worst.name}, recall {worst.recall:.1%}")
