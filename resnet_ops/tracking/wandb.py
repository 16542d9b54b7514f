"""One run at Weights & Biases, through its own library; account and project come from its environment variables."""

import os
import secrets
from collections.abc import Sequence
from typing import Any

from resnet_ops import files
from resnet_ops.errors import UserError
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import (
    best_tags,
    error_line,
    final_tags,
    full_name,
    hyperparameters,
    scalars,
    search_name,
    tags,
)

PROJECT = "resnet-ops"
EXIT_CODE = {"finished": 0, "failed": 1, "interrupted": 130, "preempted": 75}


def check_login() -> None:
    """Check, without asking a server, that W&B has an API key or needs none.

    Raises:
        UserError: It has no key, or a malformed one.
    """
    import wandb

    settings = wandb.setup().settings
    try:
        is_ready = settings.mode != "online" or wandb.login(prompt=False, verify=False)
    except Exception as error:  # a malformed key
        raise UserError(
            f"--track wandb: {error_line(error)}.", "Check WANDB_API_KEY, or run wandb login again."
        ) from error
    if not is_ready:
        raise UserError(
            "--track wandb: no W&B API key found.",
            "Run wandb login, or set WANDB_API_KEY, or set WANDB_MODE=offline and upload later with `wandb sync`.",
        )


class WandbRun:
    """A run at Weights & Biases; a `ServiceRun`. The library stores on disk what it cannot send at once."""

    def __init__(self, run: Run, record: RunRecord) -> None:
        # Logging is retried after the next epoch, and a server that is down must not keep the command from ending.
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "15")
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")
        self.run, self.record = run, record
        self.wandb_run: Any = None

    @property
    def location(self) -> str:
        """Return the address of the run's page, or its folder if offline."""
        return str(self.wandb_run.dir) if self.wandb_run.offline else str(self.wandb_run.url)

    def open(self, run_id: str | None) -> str:
        """Reopen the run with this id, or create one; return its id."""
        import wandb

        remote = files.is_remote(self.run.path)
        self.wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id or secrets.token_hex(4),
            name=full_name(self.run),
            group=search_name(self.run),
            resume="allow",
            reinit="create_new",  # since the trials of a search are logged side by side
            config=hyperparameters(self.record) | tags(self.run, self.record),
            dir=os.environ.get("WANDB_DIR") or (None if remote else str(self.run.path)),
            settings=wandb.Settings(console="off", silent=True),
            allow_val_change=True,
        )
        self.wandb_run.define_metric("*", step_metric="epoch")
        return str(self.wandb_run.id)

    def log_epochs(self, epochs: Sequence[Epoch], first: int) -> None:
        """Log the epochs from index `first` on."""
        for epoch in epochs[first:]:
            self.wandb_run.log({"epoch": epoch.epoch, **scalars(epoch)}, step=epoch.epoch)
        self.wandb_run.summary.update(best_tags(self.run, self.record, epochs))

    def replace(self) -> str:
        """Create a run in the place of this one, which is tagged, since W&B cannot unlog; return its id."""
        self.wandb_run.tags = (*(self.wandb_run.tags or ()), "superseded")
        self.wandb_run.finish()
        return self.open(None)

    def end(self, record: RunRecord) -> None:
        """Set the run's final status and what was measured last, and wait until everything is sent."""
        self.wandb_run.summary.update(final_tags(record))
        self.wandb_run.finish(exit_code=EXIT_CODE.get(record.status, 1))
