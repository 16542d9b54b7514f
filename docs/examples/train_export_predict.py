"""Train, export and predict from Python, in about half a minute on two CPU cores: python train_export_predict.py.

The cells (# %%) can be run one after the other in an editor or a notebook.
"""

# %% Look at the data: 8x8 images of handwritten digits, which come with the package.
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from resnet_ops import (
    Classifier,
    ExportConfig,
    PredictConfig,
    TrainConfig,
    check_data,
    export_onnx,
    predict,
    train,
)
from resnet_ops.data.opening import open_source

folder = Path(mkdtemp(prefix="resnet-ops-example-"))
report = check_data("digits")
print(f"{report.images[0]} training and {report.images[1]} validation images of {len(report.class_names)} classes")

# %% Train. Everything about the run is in its folder.
trained = train(TrainConfig(model="resnet8", epochs=6, name="example", runs_dir=folder / "runs"))
for epoch in trained.run.epochs():
    print(f"epoch {epoch.epoch}: training error {epoch.train_error:.1%}, validation error {epoch.val_error:.1%}")
best = trained.best
print(f"best: {best.val_accuracy:.2%} validation accuracy in epoch {best.epoch}, chosen on these images")
print(f"last epoch: {best.last_val_accuracy:.2%}")

# %% Export the best checkpoint, compared with PyTorch on random images, real ones and the whole validation set.
exported = export_onnx(ExportConfig(run="example", runs_dir=folder / "runs"))
for check in exported.checks:
    print(f"{check.name:24} {check.result:36} {'PASS' if check.passed else 'FAIL'}")
assert exported.validated

# %% Classify pixels, (N, H, W, C) uint8, with nothing but the file.
source = open_source(TrainConfig())
(folder / "images").mkdir()
files = [folder / "images" / f"{index}.png" for index in range(10)]
for file, encoded in zip(files, source.encoded("val").read(range(len(files))), strict=True):
    file.write_bytes(encoded)
classifier = Classifier(exported.onnx)
probabilities = classifier.classify(classifier.read(*files))
print(f"{files[0].name}, {Image.open(files[0]).size}: {classifier.top(probabilities[0], 3)}")

# %% Or whole folders of files.
predicted = predict(PredictConfig(file=exported.onnx, images=(folder / "images",), top=1))
print(", ".join(f"{one.path.name}: {one.top[0].name}" for one in predicted.predictions))
