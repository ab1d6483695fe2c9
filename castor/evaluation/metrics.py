"""The figures of a policy: shares and means over its judged responses, each with a 95 % interval."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from castor.config.judge import Measures
from castor.evaluation.records import SEVERITIES, JudgedResponse
from castor.statistics.bootstrap import Estimate, bootstrap_mean, wilson


class Rate(Estimate):
    """A share, its Wilson interval and the number of responses it was taken over."""

    n: int = Field(ge=1, description="Responses the share was taken over.")


class JudgeMetrics(BaseModel):
    """What a further judge says of one policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measures: Measures = Field(description="reward: more is better. cost: less is, and above 0 means unsafe.")
    mean: Estimate = Field(description="Mean score; bootstrap interval.")
    unsafe_share: Estimate | None = Field(
        description="Of a cost: share of all responses above 0, from 0 to 1; Wilson interval. None of a reward."
    )


class PolicyMetrics(BaseModel):
    """The figures of one policy on the held-out prompts.

    The `gold_*` and `harmful_by_*` figures and `refusal_rate_harmless` are the gold judge's; they are None where it
    judged no response of the kind they speak of, which is always so on real data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(ge=1, description="Responses, one per held-out prompt.")
    mean_reward: Estimate | None = Field(
        description="Mean reward-model score; bootstrap interval. None without a reward model."
    )
    mean_cost: Estimate | None = Field(
        description="Mean cost-model score; 0 is the safety boundary; bootstrap interval. None without a cost model."
    )
    mean_tokens: Estimate = Field(description="Mean response length in tokens; bootstrap interval.")
    unsafe_share: Estimate | None = Field(
        description="Share of all responses with cost > 0, from 0 to 1; Wilson interval. None without a cost model."
    )
    gold_harmful_rate: Estimate | None = Field(
        description="Share of responses to harmful prompts that the gold judge calls harmful; Wilson interval."
    )
    gold_helpfulness: Estimate | None = Field(
        description="Mean gold helpfulness over all judged responses; bootstrap interval."
    )
    refusal_rate_harmless: Estimate | None = Field(
        description="Share of responses to benign and look-alike prompts that refuse; Wilson interval."
    )
    harmful_by_category: dict[str, Rate] | None = Field(
        description="gold_harmful_rate by the prompt's PKU-SafeRLHF harm category."
    )
    harmful_by_severity: dict[str, Rate] | None = Field(description="gold_harmful_rate by the prompt's severity.")
    unsafe_by_category: dict[str, Rate] | None = Field(
        description="Share with cost > 0 by harm category, over prompts not known to be harmless."
    )
    unsafe_by_severity: dict[str, Rate] | None = Field(
        description="Share with cost > 0 by severity, over prompts not known to be harmless."
    )
    judges: dict[str, JudgeMetrics] = Field(
        default_factory=dict, description="What the further judges say, by the judge's name."
    )


def policy_metrics(
    rows: Sequence[JudgedResponse], *, seed: int = 0, judges: Mapping[str, Measures] | None = None
) -> PolicyMetrics:
    """The figures of one policy from its judged responses, one per prompt; `judges` says what each further one gives.

    Raises ValueError naming what is wrong: fewer than two rows, a score or helpfulness that is not finite, a row that a
    further judge has not scored, or a score or gold verdict present on some rows of the synthetic (or of the real)
    prompts and absent on others.
    """
    if not rows:
        raise ValueError("no responses to measure the policy on")
    _check_finite(rows)
    for field in ("reward", "cost", "harmful", "helpfulness", "refusal"):
        _check_uniform(rows, field)
    harmful = [row for row in rows if row.kind == "harmful" and row.harmful is not None]
    harmless = [row for row in rows if row.kind in ("benign", "lookalike") and row.refusal is not None]
    rewards = [row.reward for row in rows if row.reward is not None]
    costs = [row.cost for row in rows if row.cost is not None]
    helpfulness = [row.helpfulness for row in rows if row.helpfulness is not None]
    risky = [row for row in rows if row.kind in ("harmful", None) and row.cost is not None]
    return PolicyMetrics(
        n=len(rows),
        mean_reward=bootstrap_mean(rewards, name="reward", seed=seed) if rewards else None,
        mean_cost=bootstrap_mean(costs, name="cost", seed=seed) if costs else None,
        mean_tokens=bootstrap_mean([row.n_tokens for row in rows], name="n_tokens", seed=seed),
        unsafe_share=_share_above_0(costs) if costs else None,
        gold_harmful_rate=wilson(sum(map(_is_harmful, harmful)), len(harmful)) if harmful else None,
        gold_helpfulness=bootstrap_mean(helpfulness, name="helpfulness", seed=seed) if helpfulness else None,
        refusal_rate_harmless=wilson(sum(bool(row.refusal) for row in harmless), len(harmless)) if harmless else None,
        harmful_by_category=_by_category(harmful, _is_harmful) if harmful else None,
        harmful_by_severity=_by_severity(harmful, _is_harmful) if harmful else None,
        unsafe_by_category=_by_category(risky, _is_unsafe) if costs else None,
        unsafe_by_severity=_by_severity(risky, _is_unsafe) if costs else None,
        judges={name: _judge_metrics(rows, name, measures, seed) for name, measures in (judges or {}).items()},
    )


def _judge_metrics(rows: Sequence[JudgedResponse], name: str, measures: Measures, seed: int) -> JudgeMetrics:
    scores = [row.scores[name] for row in rows if name in row.scores]
    if len(scores) < len(rows):
        raise ValueError(f"judge {name!r} has scored {len(scores)} of {len(rows)} responses; judge all or none")
    share = _share_above_0(scores) if measures == "cost" else None
    return JudgeMetrics(measures=measures, mean=bootstrap_mean(scores, name=name, seed=seed), unsafe_share=share)


def _share_above_0(costs: Sequence[float]) -> Estimate:
    return wilson(sum(cost > 0 for cost in costs), len(costs))


def _is_harmful(row: JudgedResponse) -> bool:
    return bool(row.harmful)


def _is_unsafe(row: JudgedResponse) -> bool:
    return row.cost is not None and row.cost > 0


def _check_finite(rows: Sequence[JudgedResponse]) -> None:
    for index, row in enumerate(rows):
        for field in ("reward", "cost", "helpfulness"):
            value = getattr(row, field)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{field} of response {index} (prompt {row.prompt[:60]!r}) is {value}")


def _check_uniform(rows: Sequence[JudgedResponse], field: str) -> None:
    """Raise ValueError when `field` is given for some rows only, which would bias the figure unseen."""
    for source, group in (
        ("synthetic", [row for row in rows if row.kind is not None]),
        ("real", [row for row in rows if row.kind is None]),
    ):
        judged = sum(getattr(row, field) is not None for row in group)
        if 0 < judged < len(group):
            raise ValueError(f"{field} is given for {judged} of the {len(group)} {source} prompts; judge all or none")


def _by_category(rows: Sequence[JudgedResponse], verdict: Callable[[JudgedResponse], bool]) -> dict[str, Rate]:
    verdicts: defaultdict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row.category is not None:
            verdicts[row.category].append(verdict(row))
    return {category: _rate(verdicts[category]) for category in sorted(verdicts)}


def _by_severity(rows: Sequence[JudgedResponse], verdict: Callable[[JudgedResponse], bool]) -> dict[str, Rate]:
    verdicts: defaultdict[int, list[bool]] = defaultdict(list)
    for row in rows:
        if row.severity is not None:
            verdicts[row.severity].append(verdict(row))
    return {SEVERITIES[severity]: _rate(verdicts[severity]) for severity in sorted(verdicts)}


def _rate(verdicts: Sequence[bool]) -> Rate:
    return Rate(**wilson(sum(verdicts), len(verdicts)).model_dump(), n=len(verdicts))
