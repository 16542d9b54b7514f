"""Trains trials in a Ray Tune worker: the training of `train`, an epoch per Tune step, in a run directory of its own.

The worker process is reused: the next trial starts with torch imported and the images open. A trial whose run exists
is resumed, and its earlier epochs are reported to Tune again, one by one: that is how a search is resumed, since Tune's
own state is not kept. What is recorded of trials is in `trial_log`.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from resnet_ops import files, runs
from resnet_ops.cluster_config import NodeRange
from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import INTERRUPTED, PREEMPTED, PausedError, RunLostError, UserError
from resnet_ops.orchestration import cluster_kv, worker_stop
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipes.reading import configure
from resnet_ops.run_records import DataRecord, Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.stop_request import Stop, StoppedError, StopRequest
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job, preflight
from resnet_ops.training.build import cuda_algorithms
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.early_end import early_end
from resnet_ops.training.image_preparation import with_sampled_statistics
from resnet_ops.training.memory import count_parameters, free_bytes
from resnet_ops.training.observer import Observer
from resnet_ops.training.session import TrainingSession
from resnet_ops.training.start import start_weights, store_weights, with_start
from resnet_ops.tuning.algorithms import EPOCH, METRIC, NUMBER, POINT, SHARE, trial_number
from resnet_ops.tuning.space import train_options

PLACES = ("data", "val_data", "data_root", "cache_dir")  # of the images, which may have moved when it is resumed
POLL_INTERVAL_S = 0.2
MEMORY_WAIT_S = 120.0  # for memory that other trials on the same GPU use
MEMORY_RETRIES = 2
WORST_SCORE = -1e9  # of a trial that failed; a finite number, as algorithms compute with it
DONOR = "donor.safetensors"  # the weights that PBT copies from another trial


@dataclass(frozen=True)
class TrialTask:
    """The options and images that all trials of a search share.

    Args:
        trials: Folder of their run directories, a path or a URL.
        train_options: Options of train, as typed or by the search.
        data: The images that the search started with.
        device: "cpu" or "cuda".
        threads: Of each trial's torch.
        nodes: Machines of each trial.
        shares_gpu: Whether other trials run on its GPU.
        at_end: Called with the session of each trial that has trained its last epoch, before that is reported; not
            where trials have several machines.
        fence: The `Run.fence` of the search.
    """

    trials: str
    train_options: dict[str, Any]
    data: DataRecord
    device: Device
    threads: int
    nodes: int
    shares_gpu: bool = False
    at_end: Callable[[TrainingSession], None] | None = None
    fence: str | None = None


class TrialWorker(tune.Trainable):
    """Trains one trial after the other."""

    def setup(self, config: dict[str, Any], task: TrialTask) -> None:  # type: ignore[override]
        """Start the first trial."""
        self.task = task
        Run(files.to_path(task.trials).parent).join(task.fence)
        self.sources: dict[tuple[DataConfig, bool], Source] = {}
        self.listening = contextlib.ExitStack()
        if ray.is_initialized():  # else it is not in a process of Ray's
            worker_stop.take_signals()
            self.listening.enter_context(worker_stop.end_without_head(worker_stop.OWN))
            self.listening.enter_context(worker_stop.hear(task.trials, worker_stop.OWN))
        torch.set_num_threads(task.threads)
        self._start_trial(config[POINT])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave a trial, which was stopped or is done, and start another."""
        self._leave_trial()
        self._start_trial(new_config[POINT])
        return True

    def cleanup(self) -> None:
        """Leave the current trial."""
        self._leave_trial()
        self.listening.close()

    def _start_trial(self, point: dict[str, Any]) -> None:
        self.number = trial_number(self.trial_id, point)
        self.run = Run(files.to_path(self.task.trials) / f"{self.number:03d}")
        self.options = train_options({name: value for name, value in point.items() if name != NUMBER})
        self.best: Epoch | None = None  # the one whose weights are in best/
        self.history: list[Epoch] = []
        self.epoch, self.seconds = 0, 0.0
        self.memory_retries = MEMORY_RETRIES if self.task.shares_gpu else 0
        self.record: RunRecord | None = None
        self.session: TrainingSession | None = None
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self.epochs = self._train_epochs() if self.task.nodes == 1 else self._train_epochs_on_nodes()

    def _leave_trial(self) -> None:
        self.epochs.close()
        self.session = None
        torch.cuda.empty_cache()  # for the next trial, and for others on the same GPU

    def step(self) -> dict[str, Any]:
        """Train an epoch and report it. An error that ends the trial is reported too, since the worker is reused."""
        try:
            epoch = self._next_epoch()
        except StoppedError as error:
            return self._result(done=True, stopped=(error.stop.reason, error.stop.preempted))
        except (PausedError, RunLostError) as error:  # a full disk, for one: not this trial's fault
            return self._result(done=True, paused=str(error))
        except UserError as error:
            return self._failure(error.cause)
        except Exception as error:
            if not _is_out_of_memory(error):
                return self._failure(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            # Not dealt with here: its traceback holds the tensors.
            reason = ". ".join(str(error).split(". ")[:2])  # all of it is a paragraph
        else:
            return self._epoch_result(epoch)
        return self._retry_or_give_up(reason)

    def _epoch_result(self, epoch: Epoch | None) -> dict[str, Any]:
        if epoch is None:
            return self._result(done=True)
        self.epoch, self.seconds = epoch.epoch, self.seconds + epoch.seconds
        self._rank(epoch)
        assert self.record is not None
        # `check_search` refuses to search without validation images.
        assert epoch.val_error is not None
        if end := early_end(self.record.config, self.history):
            # To schedulers it is done: its best accuracy is what trials that train longer have to reach.
            return self._result(done=True, val_error=epoch.val_error, ended=end.reason, **{SHARE: 1.0})
        return self._result(done=self._is_last(epoch), val_error=epoch.val_error)

    def _rank(self, epoch: Epoch) -> None:
        assert self.record is not None
        select = self.record.config.select
        self.history = [*self._history_before(epoch), epoch]
        if self.best is None or epoch.score(select) > self.best.score(select):
            self.best = epoch

    def _history_before(self, epoch: Epoch) -> list[Epoch]:
        return [before for before in self.history if before.epoch < epoch.epoch]

    def _is_last(self, epoch: Epoch) -> bool:
        assert self.record is not None
        config = self.record.config
        return epoch.epoch >= config.epochs or early_end(config, [*self._history_before(epoch), epoch]) is not None

    def _retry_or_give_up(self, reason: str) -> dict[str, Any]:
        """Continue from the last checkpoint once the trials that share this one's GPU have left it enough memory."""
        needed = torch.cuda.max_memory_allocated() * 1.5  # what was refused is not in it
        self._leave_trial()
        if not self.memory_retries:
            return self._failure(f"The memory of the GPU is full: {reason}")
        self.memory_retries -= 1
        self.run.log_event("The memory of the GPU, which other trials share, is full; waiting for them, then retrying")
        deadline = time.monotonic() + MEMORY_WAIT_S
        while free_bytes(torch.device(self.task.device)) < needed and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        self.epochs = self._train_epochs_after(self.epoch)
        return self.step()

    def _next_epoch(self) -> Epoch | None:
        epoch, session = next(self.epochs, None), self.session
        if epoch and session and self.task.at_end and self._is_last(epoch):
            self.task.at_end(session)
        return epoch

    def _failure(self, reason: str) -> dict[str, Any]:
        self.best = None
        return self._result(done=True, failed=reason)

    def _result(self, **more: Any) -> dict[str, Any]:
        planned = self.record.config.epochs if self.record else 0
        return {
            NUMBER: self.number,
            EPOCH: self.epoch,
            SHARE: self.epoch / planned if planned else 0.0,
            METRIC: self.best.score(self.record.config.select)[0] if self.best and self.record else WORST_SCORE,
            "best_val_accuracy": self.best.val_accuracy if self.best else 0.0,
            "best_metric": self.best.selected_metric(self.record.config.select) if self.best and self.record else None,
            "planned_epochs": planned,
            "best_epoch": self.best.epoch if self.best else 0,
            "seconds": self.seconds,
            "parameters": self.record.parameters if self.record else 0,
            **more,
        }

    def _config(self) -> TrainConfig:
        own = {"name": self.run.name, "runs_dir": self.run.path.parent, "num_to_keep": 1, "device": self.task.device}
        return configure(**self.task.train_options | self.options | own)

    def _train_epochs(self) -> Generator[Epoch]:
        """Yield every epoch of the trial: those that are done, then those that it trains."""
        if files.is_file(self.run.record_file):
            self.record = self.run.read_as_written()
        else:
            self.record = self._new_record()
        if self.record.status in ("finished", "failed"):
            yield from self.run.epochs()
            if self.record.status == "failed":
                raise UserError(self.record.reason)
            return
        asked = self._config()
        where = {name: getattr(asked, name) for name in PLACES}
        self.record = self.record.model_copy(update={"config": self.record.config.model_copy(update=where)})
        source = self._source(self.record.config)
        device = torch.device(self.task.device)
        with cuda_algorithms(self.record.config, device):
            request = worker_stop.OWN
            self.session = TrainingSession.open(self.run, self.record, source, ProcessGroup(), device, request)
            yield from self.run.epochs()
            with self.session.saving():
                for epoch in self.session.trainer.run(self.session.after_step, self.session.save_is_due):
                    self.session.save(epoch)
                    self.session.wait()  # an epoch that is reported is on the disk
                    if epoch is not None:
                        yield epoch
            if request.stop and self.session.trainer.stop.agreed:
                raise StoppedError(request.stop)

    def _new_record(self) -> RunRecord:
        requested, weights = start_weights(self._config(), self.task.device, Observer())
        _, config = preflight.check_training(requested, self.task.device)
        source, start = with_start(self._source(config), requested, weights, Observer())
        parameters = count_parameters(config, source.record)
        run = runs.create(self.run.path.parent, self.run.name, "", overwrite=False)
        store_weights(run, weights)
        return job.begin(run, config, source.record, parameters, 1, self.task.device, start)

    def _source(self, config: TrainConfig) -> Source:
        """Return the images of a settled training: opened and decoded once per worker, on disk once per machine."""
        key = DataConfig(**{name: getattr(config, name) for name in DataConfig.model_fields})
        whole = config.random_resized_crop
        if (key, whole) not in self.sources:
            source = replace(open_source(config), whole=whole)
            if source.record.fingerprint != self.task.data.fingerprint:
                raise UserError(f"The images in {config.data} differ from those the search started with.")
            self.sources[key, whole] = with_sampled_statistics(source) if config.stream == "on" else source.prepare()
        return self.sources[key, whole]

    def _train_epochs_on_nodes(self) -> Generator[Epoch]:
        """Yield every epoch of a trial on several machines: a job of Ray Train, read from the files that it writes."""
        stop, failure = StopRequest(), []

        def train() -> None:
            try:
                _train_or_resume(self._config(), self.run, self.task.nodes, stop)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=train, name="train", daemon=True)
        thread.start()
        reported = 0
        try:
            while True:
                ended, asked = not thread.is_alive(), worker_stop.OWN.stop
                if asked and not stop.requested:
                    stop.request(asked.reason, asked.preempted)
                for epoch in self.run.epochs()[reported:]:
                    self.record = self.record or self.run.read_as_written()
                    if self._is_last(epoch):  # the job ends by itself, and frees its resources
                        thread.join()
                    reported += 1
                    yield epoch
                if ended and failure:
                    if getattr(failure[0], "exit_code", None) in (PREEMPTED, INTERRUPTED):
                        raise StoppedError(asked or Stop("a signal on its nodes", preempted=True))
                    raise failure[0]
                if ended:
                    return
                time.sleep(POLL_INTERVAL_S)
        finally:
            stop.request("the search", preempted=False)
            stop.at_once = True  # it has ended, or its weights are of no more use
            thread.join()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the latest weights for PBT: the trial's own checkpoints come and go."""
        latest = checkpoints.saved_checkpoints(self.run)[0]
        Path(checkpoint_dir, DONOR).write_bytes(files.read(latest))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Continue from the weights that PBT copied from a trial, with the options that it chose."""
        self._leave_trial()
        record = self.run.read_as_written()
        requested, _ = start_weights(self._config(), self.task.device, Observer())
        _, config = preflight.check_training(requested, self.task.device)
        self.run.write(record.model_copy(update={"config": config}))
        donor = checkpoints.read(Path(checkpoint_dir, DONOR))
        checkpoint = self.run.checkpoints / donor.info.file_name
        # By a unique name: Tune may have two workers do this at once, and then drops one.
        arriving = self.run.checkpoints / f".{donor.info.file_name}-{secrets.token_hex(4)}"
        files.write_atomically(arriving, Path(checkpoint_dir, DONOR).read_bytes())
        files.rename(arriving, checkpoint)
        for old in checkpoints.saved_checkpoints(self.run):
            if old != checkpoint:
                files.remove(old)
        self.run.log_event(f"Continued from the weights of epoch {donor.info.epoch} with lr {config.lr:g}")
        self.epochs = self._train_epochs_after(donor.info.epoch)

    def _train_epochs_after(self, last: int) -> Generator[Epoch]:
        for epoch in self._train_epochs():
            if epoch.epoch > last:
                yield epoch
            else:  # perhaps in another worker, which was reused since
                self._rank(epoch)


def _train_or_resume(config: TrainConfig, run: Run, nodes: int, stop: StopRequest) -> None:
    changes: dict[str, Any] = {"nodes": NodeRange(nodes, nodes), "cluster": "auto"}
    # Or a trial whose driver was killed would wait for what it holds itself.
    cluster_kv.release_resources(str(run.path))
    if files.is_file(run.record_file):  # tracked by the search's process
        places = {name: getattr(config, name) for name in PLACES}
        job.resume(run.path.parent, run.name, changes=changes | places, stop=stop, tracked=False)
    else:
        job.train(config.model_copy(update=changes), stop=stop, tracked=False)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU's memory is full, for torch's allocator or CUDA's libraries, which have no class for it."""
    refusals = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(refusal in str(error) for refusal in refusals)
    )
