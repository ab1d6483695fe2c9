"""Experiment tracking beside Weights & Biases."""

from pydantic import Field

from castor.config.base import Section

_SAMPLES = "responses of each evaluated policy that are shown, cut to 500 characters; 0: none"


class TensorBoard(Section):
    """Event files for TensorBoard, in RUN/tensorboard. An empty section, {}, asks for them."""

    samples: int = Field(32, ge=0, description=_SAMPLES)


class MLflow(Section):
    """A run of MLflow. An empty section, {}, asks for one. MLflow does not come with Castor: `pip install mlflow`."""

    uri: str | None = Field(
        None, description="tracking server; default: MLFLOW_TRACKING_URI, else a database in RUN/mlflow"
    )
    experiment: str | None = Field(None, description="default: MLFLOW_EXPERIMENT_NAME, else castor")
    samples: int = Field(32, ge=0, description=_SAMPLES)
