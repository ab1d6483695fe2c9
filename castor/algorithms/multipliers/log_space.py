"""Ascent on log λ, so that λ stays positive: the loss is -(J_C - limit) · exp(log λ) (Safe RLHF eq. 31)."""

from __future__ import annotations

import math

from castor.algorithms.multipliers.rule import Measured, Memory, Rule
from castor.config.multipliers import Multipliers


class SGDLog(Rule):
    """log λ += lr · λ · violation. Proportional to λ: what has shrunk recovers slowly, unless lambda_min holds it."""

    def start(self, config: Multipliers) -> Memory:
        return {"log_lambda": math.log(config.lambda_init)}

    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        gradient = -measured.violation * self.price(memory)
        return {"log_lambda": _clip_log(memory["log_lambda"] - config.lambda_lr * gradient, config)}

    def price(self, memory: Memory) -> float:
        return math.exp(memory["log_lambda"])


class AdamLog(SGDLog):
    """Adam on log λ with -violation as the gradient: ascent on violation · log λ, steps of about lr a step.

    The gradient of eq. 31 has the factor λ. Adam divides by the gradients of the last 1 / (1 - β2) steps, and a λ that
    has shrunk since then would leave it next to no step: 0.00003 instead of 0.1 after 500 steps within the limit.
    Without the factor the step depends on λ in no way, and on the violation by its sign and by its size relative to the
    past ones.
    """

    EPS = 1e-8

    def start(self, config: Multipliers) -> Memory:
        return {**super().start(config), "first": 0.0, "second": 0.0, "steps": 0}

    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        gradient, (decay1, decay2) = -measured.violation, config.lambda_betas
        steps = memory["steps"] + 1
        first = decay1 * memory["first"] + (1 - decay1) * gradient
        second = decay2 * memory["second"] + (1 - decay2) * gradient**2
        scale = math.sqrt(second / (1 - decay2**steps)) + self.EPS
        log_lambda = memory["log_lambda"] - config.lambda_lr * (first / (1 - decay1**steps)) / scale
        return {"log_lambda": _clip_log(log_lambda, config), "first": first, "second": second, "steps": steps}


def _clip_log(log_lambda: float, config: Multipliers) -> float:
    if config.lambda_min > 0:
        log_lambda = max(log_lambda, math.log(config.lambda_min))
    return min(log_lambda, math.log(config.highest))
