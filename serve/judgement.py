"""What the judges say of a text, as it travels: plain numbers, of which none is trusted before it was checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

JudgeName = Literal["cost", "reward", "moderation"]
JUDGES: tuple[JudgeName, ...] = ("cost", "reward", "moderation")


@dataclass(frozen=True)
class Moderation:
    """The moderation model's view of a question with its answer."""

    probabilities: dict[str, float]  # of every category
    flagged: tuple[str, ...]  # categories of its calibrated decision; empty for what it calls safe
    severity: int | None  # 1 to 3: how bad it is if it is unsafe; None without a severity head


@dataclass(frozen=True)
class Judgement:
    """Of one text. What was not asked for, or has no model, is None."""

    cost: float | None = None
    reward: float | None = None
    moderation: Moderation | None = None

    def problem(self, asked: tuple[JudgeName, ...]) -> str | None:
        """Why it is no judgement by the judges that were asked; None: it is one."""
        for name in asked:
            value = getattr(self, name)
            if value is None:
                return f"the {name} model gave no number"
            numbers = value.probabilities.values() if isinstance(value, Moderation) else [value]
            if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
                return f"the {name} model gave a number that is not finite"
        if self.moderation is None:
            return None
        if not all(0 <= number <= 1 for number in self.moderation.probabilities.values()):
            return "the moderation model gave a probability that is none"
        if not set(self.moderation.flagged) <= set(self.moderation.probabilities):
            return "the moderation model named a category that it does not have"
        return None
