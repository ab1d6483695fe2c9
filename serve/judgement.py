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

    def problem(self) -> str | None:
        """Why it is no view of a moderation model; None: it is one."""
        if not isinstance(self.probabilities, dict) or not self.probabilities:
            return "the moderation model gave no number"
        if not all(_is_number(number) for number in self.probabilities.values()):
            return "the moderation model gave a number that is not finite"
        if not all(0 <= number <= 1 for number in self.probabilities.values()):
            return "the moderation model gave a probability that is none"
        if not isinstance(self.flagged, tuple) or any(name not in list(self.probabilities) for name in self.flagged):
            return "the moderation model named a category that it does not have"
        if self.severity is not None and (type(self.severity) is not int or not 1 <= self.severity <= 3):
            return "the moderation model gave a severity that is none"
        return None


@dataclass(frozen=True)
class Judgement:
    """Of one text. What was not asked for, or has no model, is None."""

    cost: float | None = None
    reward: float | None = None
    moderation: Moderation | None = None

    def problem(self, asked: tuple[JudgeName, ...]) -> str | None:
        """Why it is no judgement by the judges that were asked; None: it is one."""
        for name in JUDGES:  # a number that nobody asked for counts in a verdict, too
            value = getattr(self, name)
            if value is None and name in asked:
                return f"the {name} model gave no number"
            if value is None:
                continue
            if name == "moderation":
                problem = (
                    value.problem() if isinstance(value, Moderation) else "the moderation model gave no moderation"
                )
                if problem is not None:
                    return problem
            elif not _is_number(value):
                return f"the {name} model gave a number that is not finite"
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
