"""A trial inside a Ray Tune worker: the same training as a run's, an epoch a step, in a run directory of its own.

The worker stays when a trial ends, and begins the next one with torch imported and the images open.
A trial that is there already is gone on with, and what it did before is told anew, epoch by epoch:
that is how a search is resumed, for Tune's own memory of it is thrown away.
"""

import secrets
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from resnet_ops import files, runs
from resnet_ops.config import DataConfig, NodeRange, TrainConfig
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import INTERRUPTED, PausedError, UserError
from resnet_ops.orchestration import cluster_kv
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipes.reading import configure
from resnet_ops.runs import DataRecord, Epoch, Run, RunRecord
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job, preflight
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.session import TrainingSession
from resnet_ops.tuning.algorithms import METRIC, NUMBER, POINT, TIME, number_of
from resnet_ops.tuning.space import options

LOOK_INTERVAL_S = 0.2
DONOR = "donor.safetensors"


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a search share.

    Args:
        trials: Folder of their run directories, a path or a URL.
        given: Options of train.
        data: The images that the search began with.
        device: "cpu" or "cuda".
        threads: Of each trial's torch.
        nodes: Machines of each trial.
        at_end: Called with the session of each trial that has trained its last epoch, before that is told; not where
            trials have several machines.
    """

    trials: str
    given: dict[str, Any]
    data: DataRecord
    device: Device
    threads: int
    nodes: int
    at_end: Callable[[TrainingSession], None] | None = None


class TrialWorker(tune.Trainable):
    """Trains one trial after the other."""

    def setup(self, config: dict[str, Any], task: TrialTask) -> None:  # type: ignore[override]
        """Begin with a trial; called once."""
        self.task = task
        self.sources: dict[DataConfig, Source] = {}
        torch.set_num_threads(task.threads)
        self._begin(config[POINT])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave one trial, which was stopped or is done, and begin with another."""
        self._leave()
        self._begin(new_config[POINT])
        return True

    def cleanup(self) -> None:
        """Leave the trial at hand."""
        self._leave()

    def _begin(self, point: dict[str, Any]) -> None:
        self.number = number_of(self.trial_id, point)
        self.run = Run(files.to_path(self.task.trials) / f"{self.number:03d}")
        self.options = options({name: value for name, value in point.items() if name != NUMBER})
        self.best, self.best_epoch, self.done, self.seconds = 0.0, 0, 0, 0.0
        self.record: RunRecord | None = None
        self.session: TrainingSession | None = None
        self.epochs = self._epochs() if self.task.nodes == 1 else self._epochs_of_many()

    def _leave(self) -> None:
        self.epochs.close()
        self.session = None

    def step(self) -> dict[str, Any]:
        """Train an epoch, and say how it went; what ends a trial is said too, and the worker lives on."""
        try:
            epoch = self._next()
        except PausedError as error:  # a full disk, say: not this trial's fault
            return self._said(done=True, paused=str(error))
        except UserError as error:
            return self._failed(error.cause)
        except torch.OutOfMemoryError as error:
            self._leave()
            torch.cuda.empty_cache()
            return self._failed(f"The memory of the GPU is full: {str(error).splitlines()[0]}")
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if epoch is None:
            return self._said(done=True)
        self.done, self.seconds = epoch.epoch, self.seconds + epoch.seconds
        if epoch.val_accuracy > self.best:
            self.best, self.best_epoch = epoch.val_accuracy, epoch.epoch
        assert self.record is not None
        return self._said(done=epoch.epoch >= self.record.config.epochs, val_error=epoch.val_error)

    def _next(self) -> Epoch | None:
        epoch, session = next(self.epochs, None), self.session
        if epoch and session and self.task.at_end and epoch.epoch == session.record.config.epochs:
            self.task.at_end(session)
        return epoch

    def _failed(self, why: str) -> dict[str, Any]:
        self.best = 0.0
        return self._said(done=True, failed=why)

    def _said(self, **more: Any) -> dict[str, Any]:
        return {
            NUMBER: self.number,
            TIME: self.done,
            METRIC: self.best,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "parameters": self.record.parameters if self.record else 0,
            **more,
        }

    def _config(self) -> TrainConfig:
        own = {"name": self.run.name, "runs_dir": self.run.path.parent, "num_to_keep": 1, "device": self.task.device}
        return configure(**self.task.given | self.options | own)

    def _epochs(self) -> Generator[Epoch]:
        """Every epoch of the trial, those done before told first."""
        if files.is_file(self.run.record_file):
            self.record = self.run.read_as_written()
        else:
            self.record = self._new_record()
        if self.record.status in ("finished", "failed"):
            yield from self.run.epochs()
            if self.record.status == "failed":
                raise UserError(self.record.reason)
            return
        source = self._source(self.record.config)
        device = torch.device(self.task.device)
        self.session = TrainingSession.open(self.run, self.record, source, ProcessGroup(), device)
        yield from self.run.epochs()
        with self.session.saving():
            for epoch in self.session.trainer.run(self.session.after_step, self.session.save_is_due):
                self.session.save(epoch)
                self.session.wait()  # an epoch that is reported is on the disk
                if epoch is not None:
                    yield epoch

    def _new_record(self) -> RunRecord:
        config = self._config()
        source, config = preflight.check_training(config, self.task.device, self._source(config))
        parameters = preflight.count_parameters(config, source.record)
        run = runs.create(self.run.path.parent, self.run.name, "", overwrite=False)
        return job.begin(run, config, source.record, parameters, 1, self.task.device)

    def _source(self, config: TrainConfig) -> Source:
        """The images, opened and decoded once a worker, on disk once a machine."""
        wanted = DataConfig(**{name: getattr(config, name) for name in DataConfig.model_fields})
        if wanted not in self.sources:
            source = open_source(config)
            if source.record.fingerprint != self.task.data.fingerprint:
                raise UserError(f"The images in {config.data} differ from those the search started with.")
            if config.stream != "on":
                source = source.prepare()
            self.sources[wanted] = source
        return self.sources[wanted]

    def _epochs_of_many(self) -> Generator[Epoch]:
        """The same, of a trial on several machines: a job of Ray Train, followed by what it writes."""
        halt, failure = threading.Event(), []

        def train() -> None:
            try:
                _train_on_many(self._config(), self.run, self.task.nodes, halt)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=train, name="train", daemon=True)
        thread.start()
        told = 0
        try:
            while True:
                ended = not thread.is_alive()
                for epoch in self.run.epochs()[told:]:
                    self.record = self.record or self.run.read_as_written()
                    if epoch.epoch == self.record.config.epochs:  # the job ends by itself, and gives its room back
                        thread.join()
                    told += 1
                    yield epoch
                if ended and failure:
                    raise failure[0]
                if ended:
                    return
                time.sleep(LOOK_INTERVAL_S)
        finally:
            halt.set()
            thread.join()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For PBT, which hands weights on: a copy, for the trial's own checkpoints come and go."""
        latest = checkpoints.saved_checkpoints(self.run)[0]
        Path(checkpoint_dir, DONOR).write_bytes(files.read(latest))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Go on from another trial's weights, or its own, with the options at hand."""
        self._leave()
        record = self.run.read_as_written()
        config = self._config()
        _, config = preflight.check_training(config, self.task.device, self._source(config))
        self.run.write(record.model_copy(update={"config": config}))
        donor = checkpoints.read(Path(checkpoint_dir, DONOR))
        place = self.run.checkpoints / donor.info.file_name
        # Under a name of its own: Tune may have two workers do this at once, and then drops one.
        arriving = self.run.checkpoints / f".{donor.info.file_name}-{secrets.token_hex(4)}"
        files.write_atomically(arriving, Path(checkpoint_dir, DONOR).read_bytes())
        files.rename(arriving, place)
        for old in checkpoints.saved_checkpoints(self.run):
            if old != place:
                files.remove(old)
        self.run.log_event(f"Continued from the weights of epoch {donor.info.epoch} with lr {config.lr:g}")
        self.epochs = self._epochs_since(donor.info.epoch)

    def _epochs_since(self, epoch: int) -> Generator[Epoch]:
        for found in self._epochs():
            if found.epoch > epoch:
                yield found


def _train_on_many(config: TrainConfig, run: Run, nodes: int, halt: threading.Event) -> None:
    changes = {"nodes": NodeRange(nodes, nodes), "cluster": "auto"}
    # The search's own process tracks its trials.
    # Or a trial whose driver was killed would wait for what it holds itself.
    cluster_kv.release_placement_group(str(run.path))
    try:
        if files.is_file(run.record_file):
            job.resume(run.path.parent, run.name, changes=changes, halt=halt, tracked=False)
        else:
            job.train(config.model_copy(update=changes), halt=halt, tracked=False)
    except UserError as error:
        if error.exit_code != INTERRUPTED:
            raise
