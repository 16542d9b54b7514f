"""Runs one worker of a training inside Ray Train: rank, share of the cores, other nodes, hangs, errors.

`trainer.py` is the training itself, `session.py` a run's part of it; neither knows Ray.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from resnet_ops import files
from resnet_ops.config import TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source, cut_note
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.formatting import first_names
from resnet_ops.orchestration import worker_stop
from resnet_ops.orchestration.allocation import has_autoscaler
from resnet_ops.orchestration.draining import drain_own_node
from resnet_ops.orchestration.elastic_trainer import usable_nodes
from resnet_ops.orchestration.nodes import read_nodes
from resnet_ops.orchestration.placement import Request, place_workers
from resnet_ops.orchestration.spot_notice import watch_for_notice
from resnet_ops.orchestration.worker_loss import PeerLostError, RegroupError, UnusableNodeError, is_peer_error
from resnet_ops.run_records import BadImage, RunRecord
from resnet_ops.runs import Run
from resnet_ops.stop_request import Stop, StopRequest
from resnet_ops.training.build import cuda_algorithms
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.early_end import EarlyEnd
from resnet_ops.training.session import TrainingSession
from resnet_ops.training.trainer import Trainer

LAST_WORDS_S = 5.0
EXIT_CODE = 86  # of a worker that the watchdog ends, to be told apart in Ray's account of its death


@dataclass(frozen=True)
class WorkerTask:
    """The work of one worker.

    Args:
        run: The run directory, a path or a URL.
        threads: Threads of each worker; None where the worker takes its share of its node's cores.
        request: What the job asks of the cluster; None where the worker is alone in this process.
        source: The images, opened by the job's driver, where that is this process.
        stop: Asks it to stop, where its driver is this process.
        fence: The driver's `Run.fence`; None where that is this process.
    """

    run: str
    threads: int | None
    request: Request | None = None
    source: Source | None = None
    stop: StopRequest | None = None
    fence: str | None = None


@dataclass(frozen=True)
class WorkerResult:
    """The result of one worker.

    Args:
        steps_at: When its first and last steps ended, in seconds since 1970; () where none was left to do.
        bad_images: Images that any worker could not decode.
        bad_val_images: Those of them that are validation images.
        early_end: Why the training ended before its last epoch, if it did.
        stop: Why it stopped; all is saved.
    """

    steps_at: tuple[float, ...]
    bad_images: tuple[BadImage, ...]
    bad_val_images: tuple[BadImage, ...] = ()
    early_end: EarlyEnd | None = None
    stop: Stop | None = None


def run_worker(task: WorkerTask) -> WorkerResult:
    """Train a run from its last checkpoint to its last epoch, or until it is asked to stop.

    Raises:
        UserError: The loss diverged, or the device's memory or the disk is full.
        UnusableNodeError: The run directory or its images cannot be read on this node.
        PeerLostError: Another worker is lost or does not answer.
        RegroupError: More nodes are available, or some are about to leave; all is saved.
    """
    run, record, group, device = _begin(task)
    with _explained_errors(record.config.batch_size, group, device), cuda_algorithms(record.config, device):
        if group.rank == 0:
            run.write_progress({"stage": f"Reading {record.config.data}"})
        source = task.source or _open_the_same(record)
        request = task.stop or worker_stop.OWN
        session = TrainingSession.open(run, record, source, group, device, request)
        trainer, nodes = session.trainer, ElasticGroup(group, task.request)
        with _watched(run, trainer, task.request), _listening(task, record, group, request), session.saving():
            for epoch in trainer.run(session.after_step, session.save_is_due):
                session.save(epoch)
                if epoch is not None:
                    ray.train.report(epoch.model_dump())
                if trainer.stop.agreed:
                    break
                goes_on = trainer.epoch < record.config.epochs and trainer.ended is None
                if goes_on and nodes.can_grow():
                    session.wait()
                    group.agree(1)  # the others stay until rank 0 has written, or Ray would end it
                    raise RegroupError("More nodes are available: resuming on them.")
            session.wait()
            group.agree(1)  # the others stay until rank 0 has written
        loader = trainer.loader
        bad_train = _gather_bad_images(group, loader.train.bad)
        bad_val = _gather_bad_images(group, loader.val.bad if loader.val else ())
        cut = _gather_bad_images(group, loader.train.cut + (loader.val.cut if loader.val else ()))
        if cut and group.rank == 0:
            run.log_event(cut_note(len(cut)))
        stop = _agreed_stop(group, request.stop) if trainer.stop.agreed else None
        if stop is not None and stop.regroups:
            raise RegroupError(f"{stop.reason}: resuming without it.")
        return WorkerResult(tuple(session.steps_at), bad_train + bad_val, bad_val, trainer.ended, stop)


def _begin(task: WorkerTask) -> tuple[Run, RunRecord, ProcessGroup, torch.device]:
    run = Run(files.to_path(task.run))
    if not files.is_file(run.record_file):
        raise _unusable_node(f"{socket.gethostname()} does not see {run.path}, written by the job's driver")
    run.join(task.fence)
    record = run.read_as_written()
    torch.set_num_threads(task.threads or _cores_per_worker(task.request))
    context = ray.train.get_context()
    group = ProcessGroup(context.get_world_rank(), context.get_world_size())
    return run, record, group, ray.train.torch.get_device() if record.device == "cuda" else torch.device("cpu")


@contextlib.contextmanager
def _explained_errors(batch_size: int, group: ProcessGroup, device: torch.device) -> Iterator[None]:
    """Turn torch's errors within a `with` block into what a user can act on, or Ray can recover from."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))  # of a paragraph on torch's allocator
        more = f": there was no room for another {asked[1]}" if asked else ""
        remedy = f"Try a --batch-size below {batch_size}, or --accumulate 2 or more."
        raise UserError(f"The memory of {device} is full{more}.", remedy, WORK_FAILED) from error
    except (RuntimeError, dist.DistError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"torch.compile failed: {reason}", "Remove --compile.", WORK_FAILED) from error
        if unable := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
            raise UserError(
                f"--deterministic: {unable[1]}, which this network needs, is not deterministic on GPUs.",
                "Remove --deterministic, or use another network.",
            ) from error
        if group.size > 1 and (isinstance(error, dist.DistError) or is_peer_error(error)):
            raise PeerLostError(re.sub(r"\[/\S+\] ", "", str(error))[:200]) from error
        raise


def _unusable_node(reason: str) -> UnusableNodeError:
    return UnusableNodeError(ray.get_runtime_context().get_node_id(), reason)


def _open_the_same(record: RunRecord) -> Source:
    """Open the run's images as this node sees them."""
    host, data = socket.gethostname(), record.config.data
    try:
        source = open_source(record.config)
    except UserError as error:
        raise _unusable_node(f"{host}: {error.cause}") from error
    if source.record.fingerprint != record.data.fingerprint:
        raise _unusable_node(f"the images in {data} on {host} differ from those the run started with")
    return source


def _cores_per_worker(request: Request | None) -> int:
    """Return this worker's share of its node's cores."""
    node_id = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in read_nodes() if node.id == node_id)
    assert request is not None
    return max(1, int(request.cores_on(node)))


def _gather_bad_images(group: ProcessGroup, bad_images: tuple[BadImage, ...]) -> tuple[BadImage, ...]:
    """Return the images that any worker could not decode, each once, by name."""
    of_each_rank = group.gather_text(json.dumps([image.model_dump() for image in bad_images]))
    images = {BadImage(**image) for text in of_each_rank for image in json.loads(text)}
    return tuple(sorted(images, key=lambda image: image.name))


def _agreed_stop(group: ProcessGroup, own: Stop | None) -> Stop | None:
    """Return why all stop; whoever ends the work counts more than whoever moves it."""
    of_each_rank = group.gather_text(json.dumps(dataclasses.asdict(own)) if own else "")
    stops = (Stop(**json.loads(text)) for text in of_each_rank if text)
    return min(stops, key=lambda stop: stop.regroups, default=None)


@contextlib.contextmanager
def _listening(task: WorkerTask, record: RunRecord, group: ProcessGroup, request: StopRequest) -> Iterator[None]:
    """Listen for whatever else than a signal asks to stop; where the driver is this process, it asks by itself."""
    if task.request is None:
        with watch_for_notice(lambda cloud, _: _request_once(request, f"spot notice of {cloud}")):
            yield
        return
    placed = Counter(group.gather_text(ray.get_runtime_context().get_node_id()))
    leave = functools.partial(_leave, task.request, record.config, placed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(worker_stop.end_without_head(request))
        if ray.train.get_context().get_local_rank() == 0:
            stack.enter_context(watch_for_notice(drain_own_node))
        if group.rank == 0:
            stack.enter_context(worker_stop.hear(task.run, request, placed, leave))
        yield


def _request_once(request: StopRequest, reason: str) -> None:
    if not request.requested:  # a second time, nothing would be saved
        request.request(reason, preempted=True)


def _leave(request: Request, config: TrainConfig, placed: Counter[str], leaving: set[str]) -> Stop:
    """Return why work stops whose nodes will leave: it goes on elsewhere where there is room, or may be soon."""
    names = first_names(node.name for node in read_nodes() if node.id in leaving)
    reason = f"{names} will leave the cluster"
    if place_workers(usable_nodes(), request, placed) or config.wait or has_autoscaler():
        return Stop(reason, preempted=True, regroups=True)
    return Stop(f"{reason}, without room elsewhere", preempted=True)


@contextlib.contextmanager
def _watched(run: Run, trainer: Trainer, request: Request | None) -> Iterator[None]:
    """End this process when training hangs; not where it is the user's own."""
    if request is None:
        yield
        return
    name = f"worker {trainer.group.rank} on {socket.gethostname()}"
    # On this node: a process that hangs may be waiting for the bucket.
    folder = Path(tempfile.mkdtemp(prefix=f"resnet-ops-{run.name}-")) if files.is_remote(run.path) else run.path
    traces = folder / f"hang-worker-{trainer.group.rank}.txt"
    watchdog = Watchdog(trainer.config.hang_timeout, traces, lambda message: run.log_event(f"{name}: {message}"))
    trainer.beat = watchdog.beat
    try:
        with watchdog.watching():
            yield
    finally:
        if folder != run.path:
            shutil.rmtree(folder, ignore_errors=True)


class ElasticGroup:
    """The nodes that the workers run on, and whether there could be more of them."""

    def __init__(self, group: ProcessGroup, request: Request | None) -> None:
        self.group, self.request = group, request
        self.workers_on: Counter[str] = Counter()  # by the id of a node
        if request is not None and request.elastic:
            self.workers_on.update(group.gather_text(ray.get_runtime_context().get_node_id()))

    def can_grow(self) -> bool:
        """Return whether more nodes have room now: the same on every worker, at no cost where it is settled."""
        if self.request is None or len(self.workers_on) in (0, self.request.most):
            return False
        larger = False
        if self.group.rank == 0:
            layout = place_workers(usable_nodes(), self.request, self.workers_on)
            larger = layout is not None and layout.workers > self.group.size
        return bool(self.group.agree(float(larger)))


class Watchdog:
    """Ends this process when there is no heartbeat for `timeout_s` seconds after the first one.

    Args:
        timeout_s: Seconds between two heartbeats that count as a hang.
        traces: File that gets every thread's stack trace before.
        log_event: Records which worker hangs.
    """

    def __init__(self, timeout_s: float, traces: Path, log_event: Callable[[str], None]) -> None:
        self.timeout_s, self.traces, self.log_event = timeout_s, traces, log_event
        self.last: float | None = None
        self.done = threading.Event()

    def beat(self) -> None:
        """Record a heartbeat: work goes on."""
        self.last = time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of a `with` block."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.done.set()
            thread.join()

    def _watch(self) -> None:
        while not self.done.wait(min(1.0, self.timeout_s / 4)):
            if self.last is not None and time.monotonic() - self.last > self.timeout_s:
                # The disk itself may hang; the process ends all the same.
                threading.Thread(target=self._report_hang, daemon=True).start()
                time.sleep(LAST_WORDS_S)
                os._exit(EXIT_CODE)

    def _report_hang(self) -> None:
        with self.traces.open("a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.log_event(f"no step for {self.timeout_s:g} s; stack traces are in {self.traces}")
        os._exit(EXIT_CODE)
