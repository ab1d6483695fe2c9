"""When the state of an RLHF run is kept, and for how long."""

from pydantic import Field

from castor.config.base import Section


class Checkpoint(Section):
    """Checkpoints of a run: policy, critics, optimisers, multipliers, and the place in the prompts."""

    every_steps: int | None = Field(None, ge=1, description="steps between checkpoints; null: minutes alone decide")
    every_minutes: float | None = Field(
        10.0, gt=0, description="minutes between checkpoints, whichever comes first; null: steps alone decide"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept while the run goes on")
    url: str | None = Field(
        None,
        description="where checkpoints are copied to as well, beside the run: s3://, gs://, any URL that fsspec opens; "
        "a run whose folder is gone goes on from there",
    )
    keep_every: int | None = Field(
        None, ge=1, description="checkpoints of multiples of this step are never removed; null: none"
    )
