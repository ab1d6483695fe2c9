"""MLflow: one run of an experiment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from castor.config.trackers import MLflow
from castor.io.errors import CastorError
from castor.io.files import make_folder, write_text
from castor.run.trackers.tracker import samples_of

EXPERIMENT = "castor"  # where neither the config nor the environment names one


class MLflowTracker:
    """A run of MLflow, which takes every figure before it goes on: a kill loses nothing. Its id is in the folder."""

    def __init__(self, config: MLflow, folder: Path, name: str) -> None:
        self._config, self._folder, self._name = config, folder, name
        self._client: Any = None
        self._run = ""

    def open(self) -> bool:
        """Raises CastorError where MLflow is not installed."""
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise CastorError(
                "the config has an mlflow section, and MLflow is not installed: `pip install mlflow`, or remove "
                "the section"
            ) from None
        make_folder(self._folder)
        own = self._folder.resolve()  # where no server is named
        server = self._config.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(server or f"sqlite:///{own / 'mlflow.db'}")
        if not self._identity.is_file():
            name = self._config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
            found = self._client.get_experiment_by_name(name)
            if found:
                experiment = found.experiment_id
            else:
                artifacts = None if server else (own / "artifacts").as_uri()
                experiment = self._client.create_experiment(name, artifact_location=artifacts)
            run = self._client.create_run(experiment, run_name=self._name)
            write_text(self._identity, run.info.run_id)
        self._run = self._identity.read_text()
        self._client.update_run(self._run, status="RUNNING")
        return True

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Metrics named SERIES/NAME."""
        for name, value in metrics.items():
            self._client.log_metric(self._run, f"{series}/{name}", value, step=step)

    def samples(self, series: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table as an artifact, SERIES/samples.json."""
        if table := samples_of(rows, self._config.samples):
            self._client.log_dict(self._run, {"columns": list(columns), "data": table}, f"{series}/samples.json")

    def start_over(self) -> None:
        """Another run of the experiment."""
        self._identity.unlink(missing_ok=True)

    def finish(self) -> None:
        """Say that it has ended."""
        self._client.set_terminated(self._run)

    @property
    def _identity(self) -> Path:
        return self._folder / "run_id"
