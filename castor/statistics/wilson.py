"""Wilson's score interval of a share."""

import math


def wilson_interval(successes: float, count: int, z: float) -> tuple[float, float]:
    """Both ends of the interval of successes / count (Wilson 1927), z the standard normal's quantile.

    z is that of (1 + confidence) / 2 for a two-sided interval and of the confidence for a one-sided bound. scipy's
    `binomtest(...).proportion_ci` gives the same ends up to rounding, but tests the share first: 3 ms instead of 1 µs.
    Raises ValueError when count < 1.
    """
    if count < 1:
        raise ValueError("a share of no responses at all has no value")
    share = successes / count
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count * count)) / scale
    return centre - half, centre + half
