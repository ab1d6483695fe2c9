"""From what the judges say to a verdict: the rule of a guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from castor.config.guard import Guard
from serve.judgement import JUDGES, Judgement, JudgeName, Moderation


@dataclass(frozen=True)
class Verdict:
    """Of one text, by the judges that were asked."""

    unsafe: bool
    judgement: Judgement
    flagged: tuple[str, ...]  # the categories on whose account it is unsafe

    @property
    def wire(self) -> dict[str, Any]:
        """What a client is told of it."""
        judgement, moderation = self.judgement, self.judgement.moderation
        return {
            "unsafe": self.unsafe,
            "cost": judgement.cost,
            "reward": judgement.reward,
            "categories": None if moderation is None else moderation.probabilities,
            "flagged": list(self.flagged),
            "severity": _severity(moderation, self.flagged),
        }


class Rule:
    """What a guard calls unsafe."""

    def __init__(self, guard: Guard, present: tuple[JudgeName, ...]) -> None:
        """`present` are the judges that there are."""
        self.guard = guard
        self.every = tuple(name for name in JUDGES if name in present)
        staged = guard.windows.first_stage == "cost" and "cost" in present and guard.combine == "any"
        self.first: tuple[JudgeName, ...] = ("cost",) if staged else tuple(n for n in self.every if n != "reward")

    @property
    def staged(self) -> bool:
        """Whether a window is judged by fewer judges than the whole answer."""
        return "moderation" in self.every and "moderation" not in self.first

    def verdict(self, judgement: Judgement) -> Verdict:
        """By all that the judgement holds. A text of which no judge says whether it is safe is unsafe."""
        guard, says = self.guard, list[bool]()
        if judgement.cost is not None:
            says.append(judgement.cost > guard.cost_limit)
        flagged: tuple[str, ...] = ()
        if judgement.moderation is not None:
            flagged = self._flagged(judgement.moderation)
            says.append(bool(flagged))
        return Verdict(any(says) or not says if guard.combine == "any" else all(says), judgement, flagged)

    def suspicious(self, verdict: Verdict) -> bool:
        """Whether the first judge is not sure that a window is safe, so that the others are asked, too."""
        cost = verdict.judgement.cost
        return self.staged and cost is not None and cost > self.guard.cost_limit - self.guard.windows.suspicion

    def _flagged(self, moderation: Moderation) -> tuple[str, ...]:
        own = self.guard.categories
        flagged = [name for name in moderation.flagged if name not in own]
        flagged += [name for name, threshold in own.items() if moderation.probabilities[name] > threshold]
        mild = moderation.severity is not None and moderation.severity < self.guard.severity
        return () if mild else tuple(flagged)


def _severity(moderation: Moderation | None, flagged: tuple[str, ...]) -> int | None:
    """The level of what is flagged, and 0 for what is not; None where no severity is predicted."""
    if moderation is None or moderation.severity is None:
        return None
    return moderation.severity if flagged else 0
