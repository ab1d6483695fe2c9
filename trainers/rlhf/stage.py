"""One RLHF run as a stage: resolve its models and limits, start its groups, run the loop, keep what it made."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from actors.group import get
from actors.reservation import reserve
from actors.signal import SignalModels
from castor.config.rlhf import RLHF
from castor.config.signal import Signal
from castor.data.rows.load import load_prompts, stream_demonstrations
from castor.data.rows.mixture import Mixture
from castor.data.rows.schemas import QARow
from castor.data.tokens.prompt_stream import PromptStream
from castor.data.tokens.template import require_same_tokenizer
from castor.io.errors import CastorError
from castor.io.files import write_json, write_jsonl
from castor.io.user_function import load_function
from castor.model_reference import ModelLike, ModelReference
from castor.models.classifier_cost import check_classifier
from castor.models.load import read_score_info
from castor.models.moderation import read_moderation_info
from trainers.prompts import fitting_prompts
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import StepResult, train
from trainers.stage_run import StageRun


def run_rlhf(run: StageRun) -> str:
    """Carry out an RLHF run: its policy, its steps and its record are left in its folder."""
    config: RLHF = run.section
    policy = run.models["policy.model"]
    signals = {name: _signal_models(run, config, name, policy) for name in config.signals}
    limits = {name: limit_of(signal, signals[name].judge) for name, signal in config.constraints.items()}
    loaded = run.rows.load([config.prompts], load_prompts)
    prompts = fitting_prompts(run, loaded, policy, config.rollout)
    stream = PromptStream(prompts, config.prompts_per_step, run.seed)
    ptx = config.learner.ptx
    run.files.multipliers.unlink(missing_ok=True)
    log = StepLog(run, config, limits)
    demonstrations: AbstractContextManager[Mixture[QARow] | None] = (
        run.rows.store([ptx.data], QARow, stream_demonstrations, use="ptx") if ptx else nullcontext()
    )
    with (
        demonstrations as ptx_rows,
        run.terminal.bar(run.name) as log.bar,
        reserve(run.bundles, run.name) as reservation,
        Groups(
            config,
            actors={each.name: each for each in run.stage.actors()},
            reservation=reservation,
            policy=policy,
            signals=signals,
            limits=limits,
            template=run.template,
            seed=run.seed,
            ptx_rows=ptx_rows,
            multipliers_file=run.files.multipliers,
        ) as groups,
    ):
        nodes = groups.nodes()
        train(config, groups, stream, run.seed, 1, log.add)
        saving = groups.learner.call("export", run.files.policy)
        get(saving, config.learner.timeout_s, "the learner (saving the policy)")
    kept = {
        name: {"statistic": config.signals[name].constraint.statistic, "limit": limit} for name, limit in limits.items()
    }
    write_json(run.files.run_record, {"limits": kept, "nodes": nodes, "steps": log.steps})
    return log.closing_line()


def _signal_models(run: StageRun, config: RLHF, name: str, policy: ModelReference) -> SignalModels:
    """What a signal is made from. Raises CastorError when its judge or its critic would not fit the run."""
    signal, judge = config.signals[name], run.models.get(f"signals.{name}.model")
    if judge is not None:
        _check_score_model(run.name, name, signal, judge)
    if signal.function is not None:
        load_function(signal.function)
    critic = None
    if config.has_critic(name):
        critic = run.models.get(f"signals.{name}.critic_model", judge)
        assert critic is not None  # `RLHF` has checked it
        require_same_tokenizer(policy, critic, f"{run.name}: the critic of signal {name!r}")
    return SignalModels(judge, critic, policy, Path.cwd())


def limit_of(signal: Signal, model: ModelLike | None) -> float:
    """The limit of a constraint in the unit of its statistic: normalised cost, or a share.

    Raises CastorError when a share must be translated into a cost and the model cannot.
    """
    if signal.known_limit is not None:
        return signal.known_limit
    assert signal.unsafe_share is not None
    assert model is not None  # `Signal` takes the share of a text judge as a share only
    info = read_score_info(model)
    if info.safe_mean is None or info.unsafe_mean is None:
        raise CastorError(
            f"{model} does not know the mean cost of safe and of unsafe responses, so unsafe_share has no threshold: "
            "state threshold instead, or limit the share itself with constraint.statistic share"
        )
    return info.safe_mean + signal.unsafe_share * (info.unsafe_mean - info.safe_mean)


def _check_score_model(run: str, name: str, signal: Signal, model: ModelLike) -> None:
    if signal.classifier is not None:
        check_classifier(read_moderation_info(model), signal.classifier, f"{run}: signal {name!r}: {model}")
        return
    kind = read_score_info(model).score_type
    wanted = "reward" if signal.role == "objective" else "cost"
    if kind != wanted:
        raise CastorError(
            f"{run}: signal {name!r} is a {signal.role}, but {model} is a {kind} model: give a {wanted} model"
        )


class StepLog:
    """Every step's numbers: to the terminal, the tracker, and steps.jsonl."""

    def __init__(self, run: StageRun, config: RLHF, limits: dict[str, float]) -> None:
        self.run, self.config, self.limits = run, config, limits
        self.steps: list[dict[str, Any]] = []
        self.bar: Any = None
        run.tracker.declare(run.name)

    def add(self, result: StepResult) -> None:
        """Record one step."""
        metrics = dict(result.metrics)
        objectives = [key for key, signal in self.config.signals.items() if signal.role == "objective"]
        constraints = list(self.config.constraints)
        record: dict[str, Any] = {
            "step": result.step,
            "mean_reward": sum(self.config.signals[k].weight * metrics[f"{k}/score_mean"] for k in objectives),
            "mean_costs": {key: metrics[f"{key}/score_mean"] for key in constraints},
            "multipliers": dict(result.coefficients.multipliers) if result.coefficients else {},
            "window_costs": dict(result.coefficients.mean_costs) if result.coefficients else {},
            "kl": metrics["kl"],
            "metrics": metrics,
        }
        self.steps.append(record)
        write_jsonl(self.run.files.steps, self.steps)
        self.run.tracker.log(self.run.name, result.step, metrics | {"mean_reward": record["mean_reward"]})
        self.bar.update(result.step, self.config.steps)
        self.run.terminal.line(self._line(record))

    def _line(self, record: dict[str, Any]) -> str:
        metrics = record["metrics"]
        seconds = metrics["rollout_s"] + metrics["learn_s"] + metrics["transfer_s"]
        parts = [
            f"{self.run.name} step {record['step']:>3}/{self.config.steps}",
            f"reward {record['mean_reward']:6.2f}",
        ]
        for key, cost in record["mean_costs"].items():
            label = "" if len(record["mean_costs"]) == 1 else f" {key}"
            parts.append(self._against_limit(key, label, cost, metrics[f"{key}/score_positive_share"], width=6))
            parts.append(f"λ{label} {record['multipliers'][key]:.2f}")
        parts.append(f"KL {record['kl']:5.2f}")
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
        """What the run came to, over its last ten steps."""
        last = self.steps[-10:]
        reward = sum(step["mean_reward"] for step in last) / len(last)
        parts = [f"reward {reward:.2f}"]
        for key in self.limits:
            cost = sum(step["mean_costs"][key] for step in last) / len(last)
            share = sum(step["metrics"][f"{key}/score_positive_share"] for step in last) / len(last)
            parts.append(f"{key} " + self._against_limit(key, "", cost, share))
        return ", ".join(parts) + " over the last ten steps"
