"""Whether a run kept its limits: what each constraint asks for, and what training and the held-out prompts show.

A cost above 0 is an unsafe response, as everywhere.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from castor.algorithms import constraints
from castor.evaluation.schema import Part
from castor.statistics.bootstrap import Estimate, bootstrap_mean, wilson

Statistic = Literal["mean", "share"]


class Reached(Estimate):
    """What a constraint measures, over some responses."""

    n: int = Field(ge=1, description="Responses it was taken over.")
    kept: bool = Field(
        description="Whether the value, or its upper bound where a confidence is asked for, is at or under the limit."
    )
    clear: bool = Field(description="Whether all of the interval is on that side of the limit.")


class Limit(Part):
    """A limit on a statistic of the costs, and what became of it."""

    statistic: Statistic = Field(description="mean: of the cost. share: of unsafe responses, cost above 0.")
    limit: float = Field(description="What the statistic must not exceed: cost units, or a share from 0 to 1.")
    training: Reached | None = Field(
        description="Over the responses of training's last window; null where fewer than two are known."
    )
    held_out: Reached | None = Field(
        description="On the held-out prompts; null where no judge of the evaluation is that of the constraint."
    )

    @property
    def decisive(self) -> Reached | None:
        """What speaks for the policy as it is: the held-out prompts, or else training."""
        return self.held_out or self.training


class Constraint(Part):
    """One constraint of one run."""

    run: str = Field(description="The RLHF run.")
    name: str = Field(description="The constraint's signal.")
    judge: str = Field(description="What gives the cost, in words.")
    judged_as: str | None = Field(
        default=None,
        description="Which judge of the evaluation is that one: cost, or a further judge by its name; null: none.",
    )
    confidence: float | None = Field(
        description="Where training kept an upper confidence bound of the statistic under the limit: its confidence."
    )
    asked: Limit = Field(description="The limit that the config states.")
    bounded: Limit | None = Field(
        description="The limit on the mean cost that training kept to in its place, where the config states a share of "
        "unsafe responses and the cost model translates it; else null."
    )


def limit_on(
    statistic: Statistic,
    limit: float,
    confidence: float | None,
    *,
    training: Sequence[float],
    held_out: Sequence[float] | None,
    seed: int,
) -> Limit:
    """A limit, and what became of it by the costs of responses."""
    asked = constraints.Limit(limit, statistic, confidence)
    return Limit(
        statistic=statistic,
        limit=limit,
        training=_reached(training, asked, seed),
        held_out=None if held_out is None else _reached(held_out, asked, seed),
    )


def _reached(costs: Sequence[float], asked: constraints.Limit, seed: int) -> Reached | None:
    """The statistic with its 95 % interval: Wilson's for a share, the bootstrap's for a mean. None below two costs."""
    if len(costs) < 2:
        return None
    if asked.statistic == "share":
        found = wilson(sum(cost > 0 for cost in costs), len(costs))
    else:
        found = bootstrap_mean(costs, name="cost", seed=seed)
    kept = asked.violation(costs) <= 0
    clear = found.high <= asked.value if kept else found.low > asked.value
    return Reached(**found.model_dump(), n=len(costs), kept=kept, clear=clear)
