"""The controller of the KL coefficient. Its owner is a process without torch."""

import math

LARGEST_COEFFICIENT = 1e6
"""Where β stops to rise: the penalty then outweighs every other term of the loss by far."""


def adapted_coefficient(coefficient: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """β ← β (1 + clip(KL / target - 1, -0.2, 0.2) · n / horizon) (Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2).

    `kl` and `target` in nats a response; n responses were measured. The paper's n / horizon is its K_β: 0.1 at the
    256 responses of a batch would be a horizon of 2,560. n counts as the horizon at most, and β ends at
    `LARGEST_COEFFICIENT`: β stays positive and finite. Raises ValueError on a KL that is not finite.
    """
    if not math.isfinite(kl):
        raise ValueError("the KL of a batch is not finite: the coefficient is not adapted to it")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return min(coefficient * (1.0 + error * min(responses, horizon) / horizon), LARGEST_COEFFICIENT)
