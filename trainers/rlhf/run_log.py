"""Every step's numbers of an RLHF run: to the terminal, the tracker, and steps.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from castor.config.rlhf import RLHF
from castor.io.files import write_jsonl
from castor.run.alarms import alarms
from trainers.rlhf.loop import StepResult
from trainers.stage_run import StageRun

CLOSING_STEPS = 10  # a run is told by the mean of its last ones


class RunLog:
    """The numbers of one run, those of the steps before it was interrupted included."""

    def __init__(self, run: StageRun, config: RLHF, limits: dict[str, float]) -> None:
        self.run, self.config, self.limits = run, config, limits
        self.steps: list[dict[str, Any]] = []
        self.alarms: dict[str, str] = {}  # of the last step
        self.bar: Any = None
        run.tracker.declare()

    def rewind(self, steps: Sequence[dict[str, Any]]) -> None:
        """Go on after these steps, the records of the run so far."""
        self.steps = list(steps)
        write_jsonl(self.run.files.steps, self.steps)

    def add(self, result: StepResult, health: Mapping[str, float]) -> None:
        """Record one step; `health` of the run's actors goes to the tracker alone, as it is not the run's result."""
        metrics = dict(result.metrics)
        constraints = list(self.config.constraints)
        record: dict[str, Any] = {
            "step": result.step,
            "weighted_reward": sum(
                signal.weight * metrics[f"{key}/score_mean"] for key, signal in self.config.objectives.items()
            ),
            "mean_costs": {key: metrics[f"{key}/score_mean"] for key in constraints},
            "multipliers": dict(result.coefficients.multipliers) if result.coefficients else {},
            "window_costs": dict(result.coefficients.mean_costs) if result.coefficients else {},
            "kl": metrics["kl"],
            "metrics": metrics,
        }
        self.steps.append(record)
        write_jsonl(self.run.files.steps, self.steps)
        before, self.alarms = self.alarms, alarms(self.config, self.steps)
        tracked = (
            metrics
            | {"weighted_reward": record["weighted_reward"]}
            | {f"alarm/{name}": 1.0 for name in self.alarms}
            | dict(health)
        )
        self.run.tracker.log(self.run.name, result.step, tracked)
        self.bar.update(result.step, self.config.steps)
        self.run.terminal.line(self._line(record))
        for name, text in self.alarms.items():
            if name not in before:
                self.run.terminal.line(f"[yellow]{self.run.name}: {text}[/]")

    def _line(self, record: dict[str, Any]) -> str:
        metrics = record["metrics"]
        seconds = sum(metrics[lap] for lap in ("rollout_s", "learn_s", "checkpoint_s", "transfer_s"))
        parts = [
            f"{self.run.name} step {record['step']:>3}/{self.config.steps}",
            f"reward {record['weighted_reward']:z6.2f}",
        ]
        for key, cost in record["mean_costs"].items():
            label = "" if len(record["mean_costs"]) == 1 else f" {key}"
            parts.append(self._against_limit(key, label, cost, metrics[f"{key}/score_positive_share"], width=6))
            parts.append(f"λ{label} {record['multipliers'][key]:.2f}")
        monitors = [key for key, signal in self.config.signals.items() if signal.role == "monitor"]
        parts += [f"{key} {metrics[f'{key}/score_mean']:6.2f}" for key in monitors]
        parts.append(f"KL {record['kl']:z5.2f}")
        parts.append(f"{metrics['tokens'] / seconds:6,.0f} tok/s")
        if "staleness_mean" in metrics:
            parts.append(
                f"stale {metrics['staleness_mean']:.2f}  waited: learner {metrics['learner_waited_s']:.1f} s, "
                f"rollout {metrics['rollout_waited_s']:.1f} s"
            )
        if metrics.get("dropped_overdue"):
            parts.append(f"overdue {metrics['dropped_overdue']:.0f}")
        return "  ".join(parts)

    def _against_limit(self, key: str, label: str, cost: float, share: float, width: int = 0) -> str:
        if self.config.signals[key].constraint.statistic == "share":
            return f"unsafe{label} {share:{width}.1%} (limit {self.limits[key]:.1%})"
        return f"cost{label} {cost:{width}.2f} (limit {self.limits[key]:.2f})"

    def closing_line(self) -> str:
        """What the run came to, over its last ten steps or all of fewer."""
        last = self.steps[-CLOSING_STEPS:]
        reward = sum(step["weighted_reward"] for step in last) / len(last)
        parts = [f"reward {reward:.2f}"]
        for key in self.limits:
            cost = sum(step["mean_costs"][key] for step in last) / len(last)
            share = sum(step["metrics"][f"{key}/score_positive_share"] for step in last) / len(last)
            parts.append(f"{key} " + self._against_limit(key, "", cost, share))
        over = f"the last {CLOSING_STEPS} steps" if len(self.steps) > CLOSING_STEPS else "all steps"
        told = ", ".join(parts) + f" over {over}"
        return "\n".join([told, *(f"[yellow]{text}[/]" for text in self.alarms.values())])
