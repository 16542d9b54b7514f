"""Search for a network and its learning rate, export the best one and measure it: python search_and_export.py.

A minute on two CPU cores. With images of your own add `"data": "photos"` to what the trials share.
"""

# %% Search. Trials share what `given` holds; the search takes the smallest network that is as good as the best.
from pathlib import Path
from tempfile import mkdtemp

from resnet_ops import ExportConfig, TuneConfig, evaluate, export_onnx, tune

runs = Path(mkdtemp(prefix="resnet-ops-example-")) / "runs"
search = tune(
    TuneConfig(depths="8,14", lr="0.05:0.4", trials=4, given={"epochs": 3, "name": "search", "runs_dir": str(runs)})
)
for trial in sorted(search.trials, key=lambda trial: -(trial.val_accuracy or 0)):
    accuracy = f"{trial.val_accuracy:.2%}" if trial.val_accuracy is not None else trial.status
    print(f"{trial.model:10} learning rate {trial.lr:.3f}: {accuracy}")
print(f"selected: {search.best.model}, learning rate {search.best.lr:.3f}")

# %% Export it like a run, in int8 for CPUs: the file is compared with the checkpoint, and rejected if it is worse.
exported = export_onnx(ExportConfig(run="search", runs_dir=runs, precision="int8", max_accuracy_drop=2))
print(f"{exported.onnx}: {'verified' if exported.validated else [check.name for check in exported.failed_checks]}")

# %% Measure the file that will be deployed: metrics of each class.
measured = evaluate(str(exported.onnx))
print(f"int8: {measured.top1:.2%} of {measured.images} images, macro F1 {measured.macro_f1:.2%}")
