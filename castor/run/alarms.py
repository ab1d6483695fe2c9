"""What in the numbers of an RLHF run says that it is going wrong, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, variance
from typing import Any

from castor.config.alarms import Alarms
from castor.config.multipliers import RULE_KEYS
from castor.config.rlhf import RLHF

Steps = Sequence[dict[str, Any]]  # records of steps.jsonl, in order


def alarms(config: RLHF, steps: Steps) -> dict[str, str]:
    """What the last of the steps gives reason to say, by the name of the alarm: what is seen, and what to do."""
    bounds = config.alarms
    found = dict(_pinned(config, steps))
    if len(steps) > bounds.over:  # the first ones are what later ones are compared with
        first, last = steps[: bounds.over], steps[-bounds.over :]
        found |= dict(_drift(bounds, first, last))
        found |= dict(_hacking(config, first, last))
    return found


def _pinned(config: RLHF, steps: Steps) -> Iterator[tuple[str, str]]:
    count = config.alarms.pinned_steps
    if count is None or len(steps) < count:
        return
    for name in config.constraints:
        rule = config.multiplier(name)
        if rule.lambda_max is None or "lambda_max" not in RULE_KEYS[rule.rule]:
            continue
        if all(step["multipliers"][name] >= rule.lambda_max for step in steps[-count:]):
            yield (
                f"{name}/pinned",
                f"λ of {name} has been at its maximum, {rule.lambda_max:g}, for {count} steps: the limit is not "
                "reached at this price; raise lambda_max, loosen the limit, or see whether the cost model still tells "
                "safe responses from unsafe ones",
            )


def _drift(bounds: Alarms, first: Steps, last: Steps) -> Iterator[tuple[str, str]]:
    length, before = _mean(last, "response_length"), _mean(first, "response_length")
    kl = _mean(last, "kl") / length
    if bounds.kl_per_token is not None and kl > bounds.kl_per_token:
        yield (
            "kl",
            f"the policy is {kl:.2f} nats a token from the reference: what it says has little to do with where it "
            "started, and judges are asked about text they were not trained on; raise kl_coeff, set kl_target, or "
            "lower the learning rate",
        )
    ratio = bounds.length_ratio
    if ratio is not None and not before / ratio <= length <= before * ratio:
        longer = length > before
        yield (
            "length",
            f"responses have {'grown' if longer else 'shrunk'} from {before:.0f} to {length:.0f} tokens: see whether "
            f"the reward model likes {'long' if longer else 'short'} ones for their length, and read some",
        )
    cut, earlier = _mean(last, "truncated_share"), _mean(first, "truncated_share")
    if bounds.truncated_share is not None and cut > bounds.truncated_share and cut >= 2 * earlier:
        yield (
            "truncated",
            f"{cut:.0%} of the responses are cut off at max_new_tokens, {earlier:.0%} were at first: raise it, or see "
            "whether the policy still ends its responses",
        )


def _hacking(config: RLHF, first: Steps, last: Steps) -> Iterator[tuple[str, str]]:
    """Goodhart: what is learned from rises, and what is not learned from says the opposite."""
    bound = config.alarms.hacking_errors
    watched = [name for name in config.signals if not config.trains_policy(name)]
    if bound is None or len(first) < 2 or not watched:
        return
    rewards = [[step["weighted_reward"] for step in steps] for steps in (first, last)]
    if _standard_errors(*rewards) <= bound:
        return
    for name in watched:
        scores = [[step["metrics"][f"{name}/score_mean"] for step in steps] for steps in (first, last)]
        sign = -1.0 if name in config.constraints else 1.0
        if sign * _standard_errors(*scores) < -bound:
            yield (
                f"{name}/hacking",
                f"the reward has risen from {mean(rewards[0]):.2f} to {mean(rewards[1]):.2f}, and {name}, from which "
                f"nothing is learned, has gone from {mean(scores[0]):.2f} to {mean(scores[1]):.2f}: the policy may "
                "please the reward model alone; read some responses, raise kl_coeff, stop earlier, or train the "
                "reward model on pairs of this policy",
            )


def _standard_errors(first: Sequence[float], last: Sequence[float]) -> float:
    """By how many standard errors the mean has risen (Welch); without any spread, as many as it takes."""
    rise = mean(last) - mean(first)
    error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
    return rise / error if error else math.copysign(math.inf, rise) if rise else 0.0


def _mean(steps: Steps, name: str) -> float:
    return mean(step["metrics"][name] for step in steps)
