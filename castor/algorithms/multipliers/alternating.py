"""CRPO (Xu, Liang, Lan, arXiv 2011.05869): steps that lower one cost, or else raise the reward, without a λ."""

from __future__ import annotations

from collections.abc import Mapping


def violated(violations: Mapping[str, float], tolerances: Mapping[str, float]) -> str | None:
    """The constraint that the next policy step lowers; None: all are within their tolerance, so reward is raised.

    The paper takes any violated constraint; here it is the one furthest beyond its tolerance, the first in order on
    a tie.
    """
    beyond = {name: violation - tolerances[name] for name, violation in violations.items()}
    worst = max(beyond, key=lambda name: beyond[name], default=None)
    return worst if worst is not None and beyond[worst] > 0 else None
