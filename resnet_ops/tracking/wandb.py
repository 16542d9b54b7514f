"""One run at Weights & Biases, by its own library; who and where come from its own variables."""

import os
import secrets
from collections.abc import Sequence
from typing import Any

from resnet_ops import files
from resnet_ops.errors import UserError
from resnet_ops.records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import best, error_line, full_name, hyperparameters, scalars, search_of, tags

PROJECT = "resnet-ops"
EXIT_CODE = {"finished": 0, "failed": 1, "interrupted": 130}


def check() -> None:
    """See, without asking anybody, that W&B would know who it is.

    Raises:
        UserError: It would not.
    """
    import wandb

    settings = wandb.setup().settings
    try:
        known = settings.mode != "online" or wandb.login(prompt=False, verify=False)
    except Exception as error:  # a key that is none
        raise UserError(
            f"--track wandb: {error_line(error)}.", "Check WANDB_API_KEY, or run wandb login again."
        ) from error
    if not known:
        raise UserError(
            "--track wandb: no W&B API key found.",
            "Run wandb login, or set WANDB_API_KEY, or set WANDB_MODE=offline and upload later with `wandb sync`.",
        )


class Wandb:
    """The run at Weights & Biases that a run is told to. Its library keeps on the disk what it cannot send at once.

    Raises:
        Exception: Whatever W&B's library raises where its server does not answer or refuses; from every method.
    """

    name = "Weights & Biases"

    def __init__(self, run: Run, record: RunRecord) -> None:
        # A server that is down is asked again after the next epoch, and must not keep the command from ending.
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "15")
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")
        self.run, self.record = run, record
        self.there: Any = None

    @property
    def where(self) -> str:
        """Where to look."""
        return str(self.there.dir) if self.there.offline else str(self.there.url)

    def begin(self, known: str | None) -> str:
        """Go on with the run that is known by this id, or make one.

        Returns:
            The id of the run.
        """
        import wandb

        remote = files.is_remote(self.run.path)
        self.there = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=known or secrets.token_hex(4),
            name=full_name(self.run),
            group=search_of(self.run),
            resume="allow",
            reinit="create_new",  # for the trials of a search are told side by side
            config=hyperparameters(self.record) | tags(self.run, self.record),
            dir=os.environ.get("WANDB_DIR") or (None if remote else str(self.run.path)),
            settings=wandb.Settings(console="off", silent=True),
            allow_val_change=True,
        )
        self.there.define_metric("*", step_metric="epoch")
        return str(self.there.id)

    def send(self, epochs: Sequence[Epoch], sent: int) -> None:
        """Tell it the epochs but for the first `sent`."""
        for epoch in epochs[sent:]:
            self.there.log({"epoch": epoch.epoch, **scalars(epoch)}, step=epoch.epoch)
        self.there.summary.update(best(self.run, epochs))

    def replace(self, known: str) -> str:  # noqa: ARG002
        """Make a run in the place of this one, which is marked: what W&B was told cannot be taken back.

        Returns:
            The new id.
        """
        self.there.tags = (*(self.there.tags or ()), "superseded")
        self.there.finish()
        return self.begin(None)

    def end(self, record: RunRecord) -> None:
        """Say how the run ended, and wait until all is sent."""
        self.there.finish(exit_code=EXIT_CODE.get(record.status, 1))
