"""TensorBoard's event files in a run's directory, by tensorboardX, which Ray brings."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import hyperparameters, scalars, times_s

FOLDER, SUFFIX = "tensorboard", ".resnet-ops"


class EventFile:
    """The event file of a run; it holds the epochs of metrics.jsonl and no others.

    An epoch is TensorBoard's step. Where a run goes on, or epochs were trained anew, all is written to another
    file, with the mark at its head that has TensorBoard forget what came before. The one before stays, for a
    TensorBoard that is reading it would never leave one that is gone. In a bucket the whole file is put again after
    each epoch.
    """

    def __init__(self, run: Run, record: RunRecord) -> None:
        self.folder, self.record = run.path / FOLDER, record
        self.written: list[Epoch] = []
        self.file: Path | None = None  # on this machine
        self.writer: Any = None
        self.scratch: tempfile.TemporaryDirectory[str] | None = None

    def catch_up(self, epochs: Sequence[Epoch]) -> None:
        """Write what is not there yet.

        Raises:
            OSError, UserError: It cannot be written.
        """
        if self.writer is None or self.written != list(epochs[: len(self.written)]):
            if not epochs and self.writer is None:
                return
            self._begin()
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        times = times_s(self.record, epochs)
        missing = range(len(self.written), len(epochs))
        for index in missing:
            for name, value in scalars(epochs[index]).items():
                self._write(Event(wall_time=times[index], step=epochs[index].epoch, summary=scalar(name, value)))
        self.writer.flush()
        if missing:
            self._publish()
        self.written = list(epochs)

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
        if self.scratch is not None:
            self.scratch.cleanup()

    def _begin(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import hparams

        self.close()
        self.written, self.writer = [], None
        files.make_folder(self.folder, exist_ok=True)
        self.scratch = tempfile.TemporaryDirectory(prefix="resnet-ops-") if files.is_remote(self.folder) else None
        folder = Path(self.scratch.name) if self.scratch else self.folder
        before = sorted(path.name for path in files.listed(self.folder) if path.name.endswith(SUFFIX))
        suffix = f".{time.time_ns()}{SUFFIX}"  # TensorBoard goes from file to file in the order of their names
        self.writer = EventsWriter(str(folder / "events"), suffix)
        (self.file,) = folder.glob(f"*{suffix}")
        created = self.record.created.timestamp()
        self._write(Event(wall_time=created, step=0, session_log=SessionLog(status=SessionLog.START)))
        # Not the end of a session, the third, which a run that is killed would not write.
        for summary in hparams(hyperparameters(self.record), {"error/val": 0.0, "loss/val": 0.0})[:2]:
            self._write(Event(wall_time=created, summary=summary))
        self.writer.flush()
        self._publish()
        for name in before[:-1]:
            files.remove(self.folder / name)

    def _write(self, event: Any) -> None:
        self.writer.write_event(event)

    def _publish(self) -> None:
        if self.scratch is not None:
            assert self.file is not None
            files.write_atomically(self.folder / self.file.name, self.file.read_bytes(), patience_s=0)
