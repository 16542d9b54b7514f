"""One run at MLflow, by its own client; the server and what it wants to know come from MLflow's variables."""

import contextlib
import getpass
import logging
import os
from collections.abc import Sequence

from resnet_ops.records import Epoch, RunRecord
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import (
    best,
    full_name,
    hyperparameters,
    scalars,
    search_of,
    tags,
    times_s,
    without_credentials,
)

EXPERIMENT = "resnet-ops"
STATUS = {"running": "KILLED", "finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
METRICS_A_REQUEST = 1000  # MLflow's own limit
LONGEST_PARAMETER = 500  # of older servers


class MLflow:
    """The run at MLflow that a run is told to.

    Raises:
        Exception: Whatever MLflow's client raises where its server does not answer or refuses; from every method.
    """

    name = "MLflow"

    def __init__(self, run: Run, record: RunRecord) -> None:
        # A server that is down is asked again after the next epoch, so it need not be waited for here.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):  # which speak of a new database, across the progress bar
            logging.getLogger(logger).setLevel(logging.ERROR)
        self.run, self.record = run, record
        self.client = MlflowClient()
        self.id = ""

    @property
    def where(self) -> str:
        """Where to look."""
        server = without_credentials(str(self.client.tracking_uri)).rstrip("/")
        if server.startswith("http"):
            return f"{server}/#/experiments/{self.client.get_run(self.id).info.experiment_id}/runs/{self.id}"
        return f"{server}, run {self.id}"

    def begin(self, known: str | None) -> str:
        """Go on with the run that is known by this id, if the server has it, or make one.

        Returns:
            The id of the run.
        """
        if known is not None and self._goes_on(known):
            self.id = known
            return known
        from mlflow.entities import Param

        about = tags(self.run, self.record) | {"mlflow.source.name": "resnet-ops", "mlflow.source.type": "LOCAL"}
        if search := search_of(self.run):
            about["search"] = search
        with contextlib.suppress(Exception):  # containers may have no name for it
            about["mlflow.user"] = getpass.getuser()
        created_ms = int(self.record.created.timestamp() * 1000)
        made = self.client.create_run(self._experiment(), created_ms, about, run_name=full_name(self.run))
        self.id = made.info.run_id
        parameters = hyperparameters(self.record).items()
        self.client.log_batch(
            self.id, params=[Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in parameters]
        )
        return self.id

    def send(self, epochs: Sequence[Epoch], sent: int) -> None:
        """Tell it the epochs but for the first `sent`. The server keeps what it is told twice once."""
        from mlflow.entities import Metric, RunTag

        times = times_s(self.record, epochs)
        metrics = [
            Metric(name, value, int(at * 1000), epoch.epoch)
            for epoch, at in zip(epochs[sent:], times[sent:], strict=True)
            for name, value in scalars(epoch).items()
        ]
        for first in range(0, len(metrics), METRICS_A_REQUEST):
            self.client.log_batch(self.id, metrics=metrics[first : first + METRICS_A_REQUEST])
        self.client.log_batch(self.id, tags=[RunTag(name, value) for name, value in best(self.run, epochs).items()])

    def replace(self, known: str) -> str:
        """Make a run in the place of this one, which MLflow then keeps among those that are deleted.

        Returns:
            The new id.
        """
        made = self.begin(None)
        self.client.delete_run(known)
        return made

    def end(self, record: RunRecord) -> None:
        """Say how the run ended."""
        self.client.set_terminated(self.id, STATUS[record.status])

    def _goes_on(self, known: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(known)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False  # another server than then, or its runs are gone
        if found.info.lifecycle_stage != "active":
            return False
        self.client.update_run(known, status="RUNNING")
        return True

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        if (found := self.client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException:  # another run has just made it
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)
