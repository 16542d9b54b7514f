"""Ray's documented way to search with Ray Train: a Tune trial that makes a TorchTrainer and reports its results.

After https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html. Trains by our loop, so that only
what is around it differs.
"""

import json
import sys
import tempfile
from pathlib import Path

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback


def train(config):  # type: ignore[no-untyped-def]
    """What a worker does."""
    import ray.train
    import torch

    from resnet_ops.config import TrainConfig
    from resnet_ops.data.augment import Augmentation
    from resnet_ops.data.loader import open_loader
    from resnet_ops.data.opening import open_source
    from resnet_ops.models import build
    from resnet_ops.training.build import build_trainer
    from resnet_ops.training.distributed import ProcessGroup

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    options = TrainConfig(model="resnet8", lr=config["lr"], epochs=config["epochs"], flip=False, crop_padding=1)
    source = open_source(options)
    augmentation = Augmentation.of(options, len(source.record.class_names), None)
    loader = open_loader(source, cpu, batch_size=options.batch_size, augmentation=augmentation, seed=0)
    network = build(options.model, num_classes=10, in_channels=1)
    seconds = 0.0
    for epoch in build_trainer(options, network, loader, ProcessGroup(), cpu).run(lambda _: None):
        seconds += epoch.seconds
        ray.train.report({"val_error": epoch.val_error, "own": seconds})


def trial(config):  # type: ignore[no-untyped-def]
    """One trial: a Ray Train job of one worker."""
    TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=f"lr-{config['lr']}", storage_path=config["storage"], callbacks=[TuneReportCallback()]
        ),
    ).fit()


def main() -> None:
    """Search, and say how long each trial trained."""
    epochs, at_once, *rates = sys.argv[1:]
    # One core more than there is: with as many as there are, drivers of trials hold what their workers wait for.
    ray.init(num_cpus=int(at_once) + 1, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as storage:
        space = {"lr": tune.grid_search([float(rate) for rate in rates]), "epochs": int(epochs), "storage": storage}
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 0.01}),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=int(at_once)),
            run_config=tune.RunConfig(storage_path=str(Path(storage, "tune")), verbose=0),
        )
        found = [result.metrics["own"] for result in tuner.fit()]
    print(json.dumps({"seconds": found}))


if __name__ == "__main__":
    main()
