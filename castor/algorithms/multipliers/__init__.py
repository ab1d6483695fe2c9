"""The price of a constraint: one file per family of rules, and the state that carries a multiplier between steps."""

from castor.algorithms.multipliers.alternating import violated
from castor.algorithms.multipliers.state import MultiplierState, initial_state, update

__all__ = ["MultiplierState", "initial_state", "update", "violated"]
