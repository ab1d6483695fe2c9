"""The owner of all multipliers: one λ per constraint, one version per update, state that survives its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.batch import read
from castor.algorithms.multipliers import MultiplierState, initial_state, update
from castor.config.rlhf import Multipliers
from castor.files import read_json, write_json


@dataclass(frozen=True)
class Prices:
    """The multipliers of one batch. `version` counts updates: the loss uses this object, and so does the log."""

    version: int
    values: dict[str, float]
    mean_costs: dict[str, float]  # of the window, per constraint


class MultiplierOwner:
    """The only writer of λ. Restarts from the file it writes after every update."""

    def __init__(self, config: Multipliers, thresholds: Mapping[str, float], state_file: Path) -> None:
        self.config, self.thresholds, self.state_file = config, dict(thresholds), state_file
        self.version, self.states = 0, {name: initial_state(config) for name in thresholds}
        if state_file.is_file():
            self.set_state(read_json(state_file))

    def update(self, version: int, costs: Mapping[str, Sequence[Any]]) -> Prices:
        """The update that leads to `version`, from refs to each constraint's scores [N_i] float32, in order.

        Asking again for the version that is already reached returns it unchanged, so a retry is never a second update.
        Raises ValueError when a version would be skipped, or a cost is not finite.
        """
        if version == self.version + 1:
            for name, refs in costs.items():
                values = np.concatenate(read(refs)).tolist()
                self.states[name] = update(self.states[name], values, self.thresholds[name], self.config)
            self.version = version
            write_json(self.state_file, self.state())
        elif version != self.version:
            raise ValueError(f"multiplier version {version} asked for at version {self.version}: an update was lost")
        return Prices(
            self.version,
            {name: state.value for name, state in self.states.items()},
            {name: state.mean_cost for name, state in self.states.items()},
        )

    def state(self) -> dict[str, Any]:
        """Everything an equal continuation needs, as JSON values."""
        return {"version": self.version, "states": {name: asdict(state) for name, state in self.states.items()}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. Raises ValueError when it is of other constraints."""
        if set(state["states"]) != set(self.thresholds):
            raise ValueError(f"the stored multipliers are of {sorted(state['states'])}, not {sorted(self.thresholds)}")
        self.version = int(state["version"])
        self.states = {
            name: MultiplierState(s["log_lambda"], tuple(s["window"]), s["updates"])
            for name, s in state["states"].items()
        }
