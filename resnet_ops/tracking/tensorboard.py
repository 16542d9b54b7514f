"""TensorBoard's event files in a run's directory, by tensorboardX, which Ray requires.

Which metrics they hold is in `payload`.
"""

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from resnet_ops import files
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import EPOCH_OF_PICTURE, Run, RunPicture
from resnet_ops.tracking.payload import end_times_s, error_line, hyperparameters, scalars

FOLDER, SUFFIX = "tensorboard", ".resnet-ops"
IMAGE_TAGS: dict[RunPicture, str] = {"augmented": "images/train", "confusion": "confusion_matrix/val"}


class EventFile:
    """The event file of a run; it holds the epochs of metrics.jsonl and no others, and the run's pictures.

    An epoch is TensorBoard's step. Where a run is resumed, or epochs are trained anew, everything is written to a new
    file, whose first event has TensorBoard discard what came before. The previous file stays, since a TensorBoard that
    is reading it would never leave one that is deleted. In a bucket the whole file is uploaded after each epoch.
    """

    def __init__(self, run: Run, record: RunRecord) -> None:
        self.run, self.folder, self.record = run, run.path / FOLDER, record
        self.written: list[Epoch] = []
        self.pictured: dict[str, int] = {}  # the epoch of the picture that was written last, by tag
        self.file: Path | None = None  # on this machine
        self.writer: Any = None
        self.scratch: tempfile.TemporaryDirectory[str] | None = None

    def update(self, epochs: Sequence[Epoch]) -> None:
        """Write the epochs that are not in the file yet.

        Raises:
            OSError, UserError: It cannot be written.
        """
        if self.writer is None or self.written != list(epochs[: len(self.written)]):
            if not epochs and self.writer is None:
                return
            self._start_file()
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        times = end_times_s(self.record, epochs)
        missing = range(len(self.written), len(epochs))
        for index in missing:
            for name, value in scalars(epochs[index]).items():
                self._write(Event(wall_time=times[index], step=epochs[index].epoch, summary=scalar(name, value)))
        drawn = self._write_pictures(times)
        self.writer.flush()
        if missing or drawn:
            self._publish()
        self.written = list(epochs)

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
        if self.scratch is not None:
            self.scratch.cleanup()

    def _write_pictures(self, times: Sequence[float]) -> bool:
        """Write the pictures that have changed, each at its epoch; return whether there are some."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        before = dict(self.pictured)
        for picture, tag in IMAGE_TAGS.items():
            try:
                content = files.read(self.run.picture_file(picture))
            except FileNotFoundError:
                continue
            with Image.open(io.BytesIO(content)) as image:
                epoch, (width, height) = int(image.info[EPOCH_OF_PICTURE]), image.size
            if self.pictured.get(tag) != epoch <= len(times):
                encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
                summary = Summary(value=[Summary.Value(tag=tag, image=encoded)])
                self._write(Event(wall_time=times[epoch - 1], step=epoch, summary=summary))
                self.pictured[tag] = epoch
        return self.pictured != before

    def _start_file(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import hparams

        self.close()
        self.written, self.pictured, self.writer = [], {}, None
        files.make_folder(self.folder, exist_ok=True)
        self.scratch = tempfile.TemporaryDirectory(prefix="resnet-ops-") if files.is_remote(self.folder) else None
        folder = Path(self.scratch.name) if self.scratch else self.folder
        previous = sorted(path.name for path in files.listed(self.folder) if path.name.endswith(SUFFIX))
        suffix = f".{time.time_ns()}{SUFFIX}"  # TensorBoard reads files in the order of their names
        self.writer = EventsWriter(str(folder / "events"), suffix)
        (self.file,) = folder.glob(f"*{suffix}")
        created = self.record.created.timestamp()
        self._write(Event(wall_time=created, step=0, session_log=SessionLog(status=SessionLog.START)))
        # Without the third, which ends a session: a run that is killed would not write it.
        split = "train" if self.record.config.fit_all else "val"
        for summary in hparams(hyperparameters(self.record), {f"error/{split}": 0.0, f"loss/{split}": 0.0})[:2]:
            self._write(Event(wall_time=created, summary=summary))
        self.writer.flush()
        self._publish()
        for name in previous[:-1]:
            files.remove(self.folder / name)

    def _write(self, event: Any) -> None:
        self.writer.write_event(event)

    def _publish(self) -> None:
        if self.scratch is not None:
            assert self.file is not None
            files.write_atomically(self.folder / self.file.name, self.file.read_bytes(), patience_s=0)


class EventFiles:
    """The event files of the runs that are being tracked; logs once if they cannot be written."""

    def __init__(self, log_event: Callable[[str], None]) -> None:
        self.log_event = log_event
        self.files: dict[Path, EventFile] = {}
        self.failed = False

    def update(self, changed: dict[Path, bool]) -> None:
        """Write runs that have changed, given for each whether it has ended."""
        for path, ended in changed.items():
            try:
                self._write(Run(path), ended)
            except Exception as error:
                if not self.failed:
                    self.log_event(f"TensorBoard: files cannot be written: {error_line(error)}. Training continues.")
                self.failed = True

    def _write(self, run: Run, ended: bool) -> None:
        if run.path not in self.files:
            self.files[run.path] = EventFile(run, run.read_as_written())
        try:
            self.files[run.path].update(run.epochs())
        finally:
            if ended:
                self.files.pop(run.path).close()
