"""The owner of all multipliers and of the KL coefficient: one version per update, state that survives its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors.processes import ends_after
from actors.recording import recorded
from actors.startup import Starting
from actors.step_batch import read
from castor.algorithms.constraints import Limit
from castor.algorithms.kl_coefficient import adapted_coefficient
from castor.algorithms.multipliers import MultiplierState, initial_state, update, violated
from castor.config.rlhf import RLHF
from castor.io.files import read_json, write_json

UPDATE_S = 60.0


@dataclass(frozen=True)
class Coefficients:
    """What weighs the terms of one update's loss: λ of every constraint, β, and whether the objectives count (CRPO).

    `version` counts updates. The loss uses this object, and so does the log.
    """

    version: int
    multipliers: dict[str, float]  # λ per constraint; of rule crpo 1 in a cost step, else 0
    mean_costs: dict[str, float]  # of the window, per constraint
    objective_share: float = 1.0  # 0 in a cost step of rule crpo: the objectives wait
    kl_coeff: float | None = None  # None: the config's
    telemetry: dict[str, dict[str, float]] = field(default_factory=dict)  # per constraint: `MultiplierState.telemetry`

    def metrics(self) -> dict[str, float]:
        """The telemetry as flat metrics, NAME/KEY; kl_coeff where it is adapted."""
        flat = {f"{name}/{key}": value for name, values in self.telemetry.items() for key, value in values.items()}
        return flat if self.kl_coeff is None else {**flat, "kl_coeff": self.kl_coeff}


@recorded
class MultiplierOwner(Starting):
    """The only writer of λ and β. Restarts from the file it writes after every update.

    An update that takes longer than `UPDATE_S` is stuck: the process shows where, and ends.
    """

    def __init__(self, config: RLHF, limits: Mapping[str, float], state_file: Path) -> None:
        """`limits` are the constraints' limits in the unit of their statistics."""
        super().__init__()
        self.limits = {name: Limit.of(config.signals[name].constraint, value) for name, value in limits.items()}
        self.rules = {name: config.multiplier(name) for name in limits}
        self.advantage, self.state_file = config.advantage, state_file
        self.version, self.states = 0, {name: initial_state(rule) for name, rule in self.rules.items()}
        self.kl_coeff = config.advantage.kl_coeff
        if state_file.is_file():
            self.set_state(read_json(state_file))

    def update(
        self, version: int, costs: Mapping[str, Sequence[Any]], kl: tuple[float, int] | None = None
    ) -> Coefficients:
        """The update that leads to `version`, from refs to each constraint's scores [N_i] float32, in order.

        `kl` is the batch's mean KL in nats a response and its number of responses, where the coefficient is adapted.
        Asking again for the version that is already reached returns it unchanged, so a retry is never a second update.
        Raises ValueError when a version would be skipped, or a cost is not finite.
        """
        if version == self.version + 1:
            values = {name: np.concatenate(read(refs)).tolist() for name, refs in costs.items()}
            with ends_after(UPDATE_S):
                self._update(version, values, kl)
        elif version != self.version:
            raise ValueError(f"multiplier version {version} asked for at version {self.version}: an update was lost")
        return self._coefficients()

    def _update(self, version: int, costs: Mapping[str, Sequence[float]], kl: tuple[float, int] | None) -> None:
        self.states |= {
            name: update(self.states[name], costs[name], self.limits[name], self.rules[name]) for name in costs
        }
        if kl is not None:
            assert self.advantage.kl_target is not None
            self.kl_coeff = adapted_coefficient(
                self.kl_coeff, kl[0], self.advantage.kl_target, kl[1], self.advantage.kl_horizon
            )
        self.version = version
        write_json(self.state_file, self.state())

    def _coefficients(self) -> Coefficients:
        multipliers = {name: state.value for name, state in self.states.items()}
        lowered = self._constraint_to_lower()
        if lowered is not None:
            multipliers[lowered] = 1.0
        return Coefficients(
            version=self.version,
            multipliers=multipliers,
            mean_costs={name: state.mean_cost for name, state in self.states.items()},
            objective_share=1.0 if lowered is None else 0.0,
            kl_coeff=self.kl_coeff if self.advantage.kl_target is not None else None,
            telemetry={name: {**state.telemetry(), "lambda": multipliers[name]} for name, state in self.states.items()},
        )

    def _constraint_to_lower(self) -> str | None:
        """The constraint that this step lowers instead of raising the objectives (rule crpo); None: it raises them."""
        violations = {
            name: state.violation
            for name, state in self.states.items()
            if state.rule == "crpo"
            and state.violation is not None
            and state.updates > self.rules[name].lambda_update_delay_steps
        }
        return violated(violations, {name: self.rules[name].tolerance for name in violations})

    def state(self) -> dict[str, Any]:
        """Everything an equal continuation needs, as JSON values."""
        states = {name: state.to_json() for name, state in self.states.items()}
        return {"version": self.version, "kl_coeff": self.kl_coeff, "states": states}

    def restore(self, state: Mapping[str, Any]) -> None:
        """`set_state`, and what a restart of this process begins from."""
        self.set_state(state)
        write_json(self.state_file, self.state())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. Raises ValueError when it is of other constraints or other rules."""
        stored = {name: values["rule"] for name, values in state["states"].items()}
        wanted = {name: rule.rule for name, rule in self.rules.items()}
        if stored != wanted:
            raise ValueError(f"the stored multipliers are of {stored}, not {wanted}")
        self.version, self.kl_coeff = int(state["version"]), float(state["kl_coeff"])
        self.states = {name: MultiplierState.from_json(values) for name, values in state["states"].items()}


def effective_kl_coeff(config: RLHF, coefficients: Coefficients | None) -> float:
    """β of a batch: the adapted one where the coefficients hold one, else the config's."""
    if coefficients is None or coefficients.kl_coeff is None:
        return config.advantage.kl_coeff
    return coefficients.kl_coeff
