"""The process that tells MLflow or W&B what runs do: `python -m resnet_ops.tracking.service mlflow|wandb`.

Which runs have news it is told on stdin, a JSON object a line, and what its user should know it says on stdout,
a JSON string a line, then `done`. Whoever started it may die at any time; then it ends, without a word to anybody.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from resnet_ops import files
from resnet_ops.runs import Epoch, Run, RunRecord
from resnet_ops.tracking.mailbox import Mailbox
from resnet_ops.tracking.told import NAMES, full_name, reason

NICENESS = 10  # training goes first


class Told:
    """A run as a service knows it: by which id, and what it was told. Kept in the run's tracking.json."""

    def __init__(self, track: str, run: Run, record: RunRecord) -> None:
        self.track, self.run = track, run
        self.file = run.path / "tracking.json"
        self.service = _service(track, run, record)
        self.id: str | None = None
        self.sent: list[list[float]] = []
        self.status = ""  # at its end
        self.begun = False
        self._read()

    def catch_up(self, epochs: list[Epoch]) -> str | None:
        """Tell the service what it does not know.

        Returns:
            Where it can be looked at, if that is news.

        Raises:
            Exception: It does not answer, or refuses.
        """
        known, news = [_known(epoch) for epoch in epochs], None
        if not self.begun:
            self._begin(self.service.begin(self.id))
            news = self.service.where
        both = min(len(known), len(self.sent))
        if self.sent[:both] != known[:both]:
            self._begin(self.service.replace(self.id))
            news = f"retrained epochs differ; logged again: {self.service.where}"
        if len(epochs) > len(self.sent):
            self.service.send(epochs, len(self.sent))
            self.sent = known
            self._write()
        return news

    def end(self, record: RunRecord) -> None:
        """Tell the service how the run ended.

        Raises:
            Exception: It does not answer, or refuses.
        """
        self.service.end(record)
        self.status = record.status
        self._write()

    def is_settled(self, epochs: list[Epoch], status: str) -> bool:
        """Whether it knows all, and that there will be no more."""
        return self.sent == [_known(epoch) for epoch in epochs] and self.status == status

    def _begin(self, found: str) -> None:
        if found != self.id:
            self.id, self.sent = found, []
        self.status, self.begun = "", True
        self._write()

    def _read(self) -> None:
        try:
            kept = json.loads(files.read(self.file)).get(self.track, {})
        except (FileNotFoundError, ValueError):
            return
        self.id, self.sent, self.status = kept.get("id"), kept.get("sent", []), kept.get("status", "")

    def _write(self) -> None:
        content = {self.track: {"id": self.id, "status": self.status, "sent": self.sent}}
        files.write_atomically(self.file, json.dumps(content).encode() + b"\n", patience_s=0)


def _known(epoch: Epoch) -> list[float]:
    """What tells an epoch from the same one trained otherwise; how fast it was does not."""
    return [epoch.epoch, epoch.train_loss, epoch.val_loss, epoch.val_error]


def _service(track: str, run: Run, record: RunRecord) -> Any:
    if track == "mlflow":
        from resnet_ops.tracking.mlflow import MLflow

        return MLflow(run, record)
    from resnet_ops.tracking.wandb import Wandb

    return Wandb(run, record)


class Teller:
    """Tells one service of some runs, and remembers whether it answered."""

    def __init__(self, track: str, mailbox: Mailbox, resumes: dict[Path, str], tell: Any) -> None:
        self.track, self.name, self.tell = track, NAMES[track], tell
        self.mailbox, self.resumes = mailbox, resumes
        self.told: dict[Path, Told] = {}
        self.down = False

    def work(self) -> None:
        """Tell what there is to tell, until there is no more."""
        while due := self.mailbox.take():
            asked = True  # one that does not answer is asked once a round, however many runs there are
            for path, ended in due.items():
                asked = asked and self._ask(Run(path), ended)
                if ended:
                    self._tell_what_is_missing(Run(path))
                    self.told.pop(path, None)

    def _ask(self, run: Run, ended: bool) -> bool:
        """Whether it answered."""
        try:
            epochs, record = run.epochs(), run.read_as_written()
            if run.path not in self.told:
                self.told[run.path] = Told(self.track, run, record)
            told = self.told[run.path]
            if ended and not told.begun and told.is_settled(epochs, record.status):
                return True
            news = told.catch_up(epochs)
            if ended:
                told.end(record)
        except Exception as error:
            if not self.down:
                self.tell(f"{self.name}: logging failed: {reason(error)}. Training continues; logging is retried.")
            self.down = True
            return False
        if news:
            self.tell(f"{self.name}: {news}")
        if self.down:
            self.tell(f"{self.name}: reconnected; everything missed has been logged.")
        self.down = False
        return True

    def _tell_what_is_missing(self, run: Run) -> None:
        try:
            epochs = run.epochs()
        except Exception:  # told already
            return
        told = self.told.get(run.path)
        missing = len(epochs) - (len(told.sent) if told else 0)
        if missing > 0 or (self.down and epochs):
            what = f"{missing} of {len(epochs)} epochs" if missing > 0 else "the final status"
            self.tell(f"{self.name}: not logged: {what} of {full_name(run)}. To log it later: {self.resumes[run.path]}")


def main() -> None:
    """Work until told to close, or until nobody is there to tell anything."""
    os.nice(NICENESS)
    # Libraries may print; to nobody.
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    mailbox, resumes = Mailbox(), dict[Path, str]()

    def tell(what: str) -> None:
        print(json.dumps(what), file=said, flush=True)

    def hear() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "close" in message:
                mailbox.close()
                return
            path = files.to_path(message["run"])
            resumes[path] = message["resume"]
            mailbox.put(path, message["ended"])
        os._exit(0)

    threading.Thread(target=hear, daemon=True).start()
    Teller(sys.argv[1], mailbox, resumes, tell).work()
    print("done", file=said, flush=True)


if __name__ == "__main__":
    main()
