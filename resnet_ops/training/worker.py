"""A session inside a Ray Train worker: what a cluster adds to it (rank, share, other machines, hangs)."""

import contextlib
import faulthandler
import os
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from resnet_ops import files
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.orchestration.elastic_trainer import usable_nodes
from resnet_ops.orchestration.nodes import read_nodes
from resnet_ops.orchestration.placement import Request, place_workers
from resnet_ops.orchestration.worker_loss import PeerLostError, RegroupError, UnusableNodeError, is_peer_error
from resnet_ops.runs import BadImage, Run, RunRecord
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.session import TrainingSession
from resnet_ops.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """What came of a worker's part.

    Args:
        steps_at: When its first and last steps ended, in seconds since 1970; () where none was left to do.
        bad: Broken images that any worker met.
    """

    steps_at: tuple[float, ...]
    bad: tuple[BadImage, ...]


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is sent to do.

    Args:
        run: The run directory, a path or a URL.
        threads: Threads of each worker; None where the worker is to take its share of its machine.
        request: What the job asks of the cluster; None where the worker is alone in this process.
        source: The images, opened by the job's driver, where that is this process.
    """

    run: str
    threads: int | None
    request: Request | None = None
    source: Source | None = None


def run_worker(job: WorkerTask) -> Outcome:
    """Train a run from where it stands.

    Raises:
        UserError: The loss diverged, or the device's memory or the disk is full.
        UnusableNodeError: The run directory or its images are not to be seen from this machine.
        PeerLostError: Another worker is gone or silent.
        RegroupError: More machines are there; all is saved.
    """
    run = Run(files.to_path(job.run))
    if not files.is_file(run.record_file):
        raise _unfit(f"{socket.gethostname()} does not see {run.path}, written by the job's driver")
    record = run.read_as_written()
    torch.set_num_threads(job.threads or _share_of_this_machine(job.request))
    context = ray.train.get_context()
    world = ProcessGroup(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device() if record.device == "cuda" else torch.device("cpu")
    try:
        return _train(run, record, world, device, job.request, job.source)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The memory of {device} is full: {str(error).splitlines()[0]}",
            f"Try a --batch-size below {record.config.batch_size}.",
            exit_code=WORK_FAILED,
        ) from error
    except (RuntimeError, dist.DistError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"torch.compile failed: {reason}", "Remove --compile.", WORK_FAILED) from error
        if world.size > 1 and (isinstance(error, dist.DistError) or is_peer_error(error)):
            raise PeerLostError(re.sub(r"\[/\S+\] ", "", str(error))[:200]) from error
        raise


def _unfit(why: str) -> UnusableNodeError:
    return UnusableNodeError(ray.get_runtime_context().get_node_id(), why)


def _open_the_same(record: RunRecord) -> Source:
    """The run's images, as this machine sees them."""
    here, data = socket.gethostname(), record.config.data
    try:
        source = open_source(record.config)
    except UserError as error:
        raise _unfit(f"{here}: {error.cause}") from error
    if source.record.fingerprint != record.data.fingerprint:
        raise _unfit(f"the images in {data} on {here} differ from those the run started with")
    return source


def _share_of_this_machine(request: Request | None) -> int:
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in read_nodes() if node.id == here)
    assert request is not None
    return max(1, int(request.cores_on(node)))


def _train(
    run: Run,
    record: RunRecord,
    world: ProcessGroup,
    device: torch.device,
    request: Request | None,
    source: Source | None,
) -> Outcome:
    if world.rank == 0:
        run.write_progress({"stage": f"Reading {record.config.data}"})
    session = TrainingSession.open(run, record, source or _open_the_same(record), world, device)
    group = ElasticGroup(world, request)
    with _watched(run, world, session.training, request), session.saving():
        for epoch in session.epochs():
            if epoch is not None:
                ray.train.report(epoch.model_dump())
            if session.training.epoch < record.config.epochs and group.could_be_larger():
                session.wait()
                world.agree(1)  # the others stay until rank 0 has written, or Ray would end it
                raise RegroupError
    return Outcome(tuple(session.steps_at), _met_by_all(world, session.bad))


def _met_by_all(world: ProcessGroup, bad: tuple[BadImage, ...]) -> tuple[BadImage, ...]:
    every: list[Any] = [bad]
    if world.size > 1:
        every = [()] * world.size
        dist.all_gather_object(every, bad)
    return tuple(sorted({image for some in every for image in some}, key=lambda image: image.name))


@contextlib.contextmanager
def _watched(run: Run, world: ProcessGroup, training: Trainer, request: Request | None) -> Iterator[None]:
    """End this process when training hangs; not where it is the user's own."""
    if request is None:
        yield
        return
    name = f"worker {world.rank} on {socket.gethostname()}"
    folder = Path(tempfile.gettempdir(), f"resnet-ops-{run.name}") if files.is_remote(run.path) else run.path
    folder.mkdir(exist_ok=True)  # on this machine: a process that hangs may be waiting for the bucket
    traces = folder / f"hang-worker-{world.rank}.txt"
    watchdog = Watchdog(training.config.hang_timeout, traces, lambda what: run.log_event(f"{name}: {what}"))
    training.beat = watchdog.beat
    with watchdog.watching():
        yield


class ElasticGroup:
    """The machines that the workers are on, and whether there could be more of them."""

    def __init__(self, world: ProcessGroup, request: Request | None) -> None:
        self.world, self.request = world, request
        self.ours: Counter[str] = Counter()
        if request is not None and request.elastic:
            here: list[Any] = [None] * world.size
            mine = ray.get_runtime_context().get_node_id()
            if world.size > 1:
                dist.all_gather_object(here, mine)
            else:
                here = [mine]
            self.ours.update(here)

    def could_be_larger(self) -> bool:
        """Whether there is room on more machines now; the same on every worker, at no cost where it is settled."""
        if self.request is None or len(self.ours) in (0, self.request.most):
            return False
        larger = False
        if self.world.rank == 0:
            layout = place_workers(usable_nodes(), self.request, self.ours)
            larger = layout is not None and layout.workers > self.world.size
        return bool(self.world.agree(float(larger)))


LAST_WORDS_S = 5.0
EXIT_CODE = 86  # told apart in Ray's account of a worker's death


class Watchdog:
    """Ends this process when no beat was heard for `timeout_s` seconds after the first.

    Args:
        timeout_s: Seconds between two beats that are too many.
        traces: File that gets every thread's stack first.
        log_event: Told first which worker hangs.
    """

    def __init__(self, timeout_s: float, traces: Path, log_event: Callable[[str], None]) -> None:
        self.timeout_s, self.traces, self.log_event = timeout_s, traces, log_event
        self.last: float | None = None
        self.done = threading.Event()

    def beat(self) -> None:
        """Say that work goes on."""
        self.last = time.monotonic()

    @contextmanager
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
                # What hangs may be the disk that is written to now; the end comes all the same.
                threading.Thread(target=self._say_where, daemon=True).start()
                time.sleep(LAST_WORDS_S)
                os._exit(EXIT_CODE)

    def _say_where(self) -> None:
        with self.traces.open("a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.log_event(f"no step for {self.timeout_s:g} s; stack traces are in {self.traces}")
        os._exit(EXIT_CODE)
