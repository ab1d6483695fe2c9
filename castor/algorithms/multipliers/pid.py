"""A PID controller on the violation (Stooke, Achiam, Abbeel 2020, Responsive Safety in RL, algorithm 2)."""

from __future__ import annotations

from castor.algorithms.multipliers.rule import Measured, Memory, Rule, clip
from castor.config.multipliers import Multipliers


class PID(Rule):
    """λ = clip(kp · Δ̃ + I + kd · (rise of Δ̃)+), I ← clip(I + ki · Δ, 0, lambda_max), Δ the violation.

    Δ̃ is the exponential moving average with weight `pid_smoothing` on the past, started at the first violation. As the
    limit is constant, the rise of the smoothed violation is that of the smoothed cost; falling costs are not braked.
    The integral starts at lambda_init. Its cap at lambda_max keeps it from winding up where λ can no longer follow.
    """

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": config.lambda_init, "integral": config.lambda_init}

    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        before = memory.get("smoothed", measured.violation)
        smoothed = config.pid_smoothing * before + (1 - config.pid_smoothing) * measured.violation
        integral = min(max(0.0, memory["integral"] + config.pid_ki * measured.violation), config.highest)
        price = config.pid_kp * smoothed + integral + config.pid_kd * max(0.0, smoothed - before)
        return {"lambda": clip(price, config), "integral": integral, "smoothed": smoothed}
