"""Experiment tracking."""

from typing import Literal

from pydantic import Field

from castor.config.base import Section


class WandB(Section):
    """Weights & Biases. Without an account the run is kept offline beside the results, in RUN/wandb.

    A run folder is one run there, whose stages are series with steps of their own. Its group is WANDB_RUN_GROUP, else
    the folder's name.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        description="auto: as WANDB_MODE, WANDB_DISABLED or `wandb offline` say, else online where an API key is "
        "configured and offline otherwise; any other mode goes before the environment",
    )
    project: str | None = Field(None, description="project; default: WANDB_PROJECT, else castor")
    entity: str | None = Field(None, description="team or user; default: WANDB_ENTITY, else the key's own")
    samples: int = Field(
        32, ge=0, description="responses of each evaluated policy in a table, cut to 500 characters; 0: no texts leave"
    )
