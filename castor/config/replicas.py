"""How many replicas of a deployment there are."""

from pydantic import Field, model_validator

from castor.config.base import Section


class Replicated(Section):
    """A number of replicas, or one between two that follows what there is to do."""

    replicas: int = Field(1, ge=1, description="replicas, or the fewest of them where max_replicas says more")
    max_replicas: int | None = Field(
        None, ge=1, description="grow to as many while there is more to do than target_ongoing_requests each"
    )
    target_ongoing_requests: float = Field(32, gt=0, description="requests of one replica that more are started beyond")

    @model_validator(mode="after")
    def _grows(self) -> "Replicated":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        return self
