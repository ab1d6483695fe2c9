"""Safe RLHF in rounds."""

from typing import Any

from pydantic import Field

from castor.config.base import Section


class Rounds(Section):
    """Safe RLHF in rounds: collect, reward, cost and the rlhf run once a round, each from where the last one ended."""

    count: int = Field(ge=1, description="rounds; or give the number in place of the section")
    changes: dict[int, dict[str, Any]] = Field(
        default_factory=dict,
        description="options that differ in a round, by its number: {2: {rlhf.NAME.multipliers.lambda_init: 0.5}}",
    )
    unified: bool = Field(
        True,
        description="after the last round, train a reward and a cost model on the rows of all rounds, from other "
        "random numbers, that only judge the policies; otherwise those of the last round do",
    )
