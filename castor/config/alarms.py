"""When the numbers of an RLHF run are worth a look."""

from pydantic import Field

from castor.config.base import Section


class Alarms(Section):
    """Bounds past which a run says that something is probably wrong. It goes on."""

    pinned_steps: int | None = Field(
        20, ge=1, description="steps in a row with a multiplier at its lambda_max; null: no alarm"
    )
    kl_per_token: float | None = Field(
        1.0, gt=0, description="KL to the reference, in nats a response token (mean of `over` steps); null: no alarm"
    )
    length_ratio: float | None = Field(
        3.0,
        gt=1,
        description="factor by which responses have become longer or shorter than in the first `over` steps; null: no "
        "alarm",
    )
    truncated_share: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="share of responses cut off at max_new_tokens, where it has at least doubled since the first "
        "`over` steps; null: no alarm",
    )
    hacking_errors: float | None = Field(
        3.0,
        gt=0,
        description="standard errors by which the reward has risen while a judge that nothing is learned from (a "
        "monitor, or a constraint of rule none) has become that much unhappier, from the first `over` steps to the "
        "last; null: no alarm",
    )
    over: int = Field(5, ge=1, description="steps whose mean is looked at")
