"""Whether a run kept its limits, in words: the first thing that terminal and report say."""

from dataclasses import dataclass
from typing import Literal

from castor.evaluation.limits import Constraint, Limit, Reached
from castor.evaluation.summary import Summary
from castor.reports.wording import interval, number, policy_title

Tone = Literal["good", "mixed", "bad"]


@dataclass(frozen=True)
class Told:
    """One constraint of one run: what became of its limit, and the figures behind it."""

    run: str
    title: str  # run and constraint, as they are shown
    state: str
    tone: Tone
    sentences: list[str]


def told(summary: Summary) -> list[Told]:
    """Every constraint of every run, in their order."""
    return [_told(constraint) for constraint in summary.constraints]


def tone_with_limits(tone: str, limits: list[Told]) -> str:
    """The tone of a headline that stands under these limits: no better than the worst of them."""
    tones = ("bad", "mixed", "good")
    return min([tone, *(each.tone for each in limits)], key=tones.index)


def _told(constraint: Constraint) -> Told:
    asked = constraint.asked
    words = _limit(asked)
    if constraint.confidence is not None and constraint.bounded is None:
        words += f", with {number(constraint.confidence, True)} confidence"
    sentences = [f"Asked: {words}.", *_figures(asked, constraint.judge)]
    if constraint.bounded is not None:
        sentences.append(_translated(constraint, constraint.bounded))
    state, tone = _state(asked.decisive)
    title = f"{policy_title(constraint.run)}, {constraint.name}"
    return Told(constraint.run, title, state, tone, sentences)


def _state(found: Reached | None) -> tuple[str, Tone]:
    if found is None:
        return "nothing was measured", "mixed"
    if found.kept:
        return ("limit kept", "good") if found.clear else ("limit kept, though chance could explain it", "mixed")
    return ("limit broken", "bad") if found.clear else ("limit broken, though chance could explain it", "mixed")


def _limit(limit: Limit) -> str:
    value = number(limit.limit, limit.statistic == "share")
    return f"at most {value} unsafe answers" if limit.statistic == "share" else f"a mean cost of at most {value}"


def _figures(limit: Limit, judge: str) -> list[str]:
    held_out = (
        f"Held-out prompts: {_value(limit, limit.held_out)}."
        if limit.held_out
        else f"Held-out prompts: not judged by the {judge}, which this limit is about."
    )
    return [held_out, f"End of training: {_value(limit, limit.training)}."]


def _value(limit: Limit, found: Reached | None) -> str:
    if found is None:
        return "unknown"
    is_share = limit.statistic == "share"
    return f"{number(found.value, is_share)} ({interval(found, is_share)}), {found.n} answers"


def _translated(constraint: Constraint, bounded: Limit) -> str:
    share = number(constraint.asked.limit, True)
    parts = [f"held-out {number(bounded.held_out.value)}"] if bounded.held_out else []
    parts += [f"at its end {number(bounded.training.value)}"] if bounded.training else []
    text = (
        f"Training kept to {_limit(bounded)} in its place, which is what the cost model expects of {share} unsafe "
        f"answers: {', '.join(parts)}."
    )
    found = constraint.asked.decisive
    if found is not None and not found.kept:
        text += " That is only as good as the model's calibration; constraint.statistic share limits the share itself."
    return text
