"""One run at MLflow, through its own client; server and credentials come from MLflow's environment variables."""

import contextlib
import getpass
import logging
import os
from collections.abc import Sequence

from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import (
    best_tags,
    end_times_s,
    final_tags,
    full_name,
    hyperparameters,
    scalars,
    search_name,
    tags,
    without_credentials,
)

EXPERIMENT = "resnet-ops"
STATUS = {"finished": "FINISHED", "failed": "FAILED"} | dict.fromkeys(("running", "interrupted", "preempted"), "KILLED")
METRICS_PER_REQUEST = 1000  # MLflow's own limit
MAX_PARAMETER_LENGTH = 500  # of older servers


class MLflowRun:
    """A run at MLflow; a `ServiceRun`."""

    def __init__(self, run: Run, record: RunRecord) -> None:
        # Logging is retried after the next epoch, so a server that is down need not be waited for here.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Where a run ends, it would print its address on stdout, into the progress bar and beside the JSON result.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):  # which announce a new database in the midst of the progress bar
            logging.getLogger(logger).setLevel(logging.ERROR)
        self.run, self.record = run, record
        self.client = MlflowClient()
        self.id = ""

    @property
    def location(self) -> str:
        """Return the address of the run's page, or the store it is in."""
        server = without_credentials(str(self.client.tracking_uri)).rstrip("/")
        if server.startswith("http"):
            return f"{server}/#/experiments/{self.client.get_run(self.id).info.experiment_id}/runs/{self.id}"
        return f"{server}, run {self.id}"

    def open(self, run_id: str | None) -> str:
        """Reopen the run with this id if the server has it, else create one; return its id."""
        if run_id is not None and self._reopen(run_id):
            self.id = run_id
            return run_id
        from mlflow.entities import Param

        run_tags = tags(self.run, self.record) | {"mlflow.source.name": "resnet-ops", "mlflow.source.type": "LOCAL"}
        if search := search_name(self.run):
            run_tags["search"] = search
        with contextlib.suppress(Exception):  # containers may have no name for it
            run_tags["mlflow.user"] = getpass.getuser()
        created_ms = int(self.record.created.timestamp() * 1000)
        created = self.client.create_run(self._experiment_id(), created_ms, run_tags, run_name=full_name(self.run))
        self.id = created.info.run_id
        parameters = hyperparameters(self.record).items()
        self.client.log_batch(
            self.id, params=[Param(name, str(value)[:MAX_PARAMETER_LENGTH]) for name, value in parameters]
        )
        return self.id

    def log_epochs(self, epochs: Sequence[Epoch], first: int) -> None:
        """Log the epochs from index `first` on; the server stores once what is logged twice."""
        from mlflow.entities import Metric, RunTag

        times = end_times_s(self.record, epochs)
        metrics = [
            Metric(name, value, int(time_s * 1000), epoch.epoch)
            for epoch, time_s in zip(epochs[first:], times[first:], strict=True)
            for name, value in scalars(epoch).items()
        ]
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self.client.log_batch(self.id, metrics=metrics[start : start + METRICS_PER_REQUEST])
        best = best_tags(self.run, self.record, epochs)
        self.client.log_batch(self.id, tags=[RunTag(name, value) for name, value in best.items()])

    def replace(self) -> str:
        """Create a run in the place of this one, which is deleted; return its id."""
        replaced = self.id
        self.open(None)
        self.client.delete_run(replaced)
        return self.id

    def end(self, record: RunRecord) -> None:
        """Set the run's final status, and what was measured last."""
        for name, value in final_tags(record).items():
            self.client.set_tag(self.id, name, value)
        self.client.set_terminated(self.id, STATUS[record.status])

    def _reopen(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False  # on another server, or purged
        if run.info.lifecycle_stage != "active":
            return False
        self.client.update_run(run_id, status="RUNNING")
        return True

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        if (experiment := self.client.get_experiment_by_name(name)) is not None:
            return str(experiment.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException:  # another run has just created it
            if (experiment := self.client.get_experiment_by_name(name)) is None:
                raise
            return str(experiment.experiment_id)
