"""Experiment tracking."""

from typing import Literal

from pydantic import Field

from castor.config.base import Section


class WandB(Section):
    """Weights & Biases. Without an account the run is kept offline beside the results."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where an API key is configured, offline otherwise"
    )
    project: str = Field("castor", description="project")
    entity: str | None = Field(None, description="team or user")
