"""One RLHF run as a stage: resolve its models and limits, start its groups, run the loop, keep what it made."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from actors.group import get
from actors.scorer import PolicyText
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
from castor.models.classifier_cost import check_classifier
from castor.models.load import read_score_info
from castor.models.moderation import read_moderation_info
from trainers.context import Context
from trainers.prompts import check_context, fitting_prompts
from trainers.results import run_file
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import StepResult, train


def run_rlhf(context: Context, name: str, stage: RLHF) -> str:
    """Carry out the run `name`; its policy ends in <run_dir>/<name>/policy, its steps in steps.jsonl."""
    config, seed = stage, context.seed(name)
    out = context.folder.path / name
    policy = context.folder.model_path(config.policy.model)
    signals = {key: _signal_models(context, name, config, key, policy) for key in config.signals}
    check_context(name, policy, config.rollout.max_prompt_tokens, config.rollout.max_new_tokens)
    limits = {key: limit(signal, signals[key].judge) for key, signal in config.constraints.items()}
    prompts = context.load_rows(name, [config.prompts], load_prompts)
    prompts = fitting_prompts(context, name, prompts, policy, config.rollout.max_prompt_tokens)
    stream = PromptStream(prompts, config.prompts_per_step, seed)
    ptx = config.learner.ptx
    (out / "multipliers.json").unlink(missing_ok=True)
    log = StepLog(context, name, config, limits, out)
    demonstrations: AbstractContextManager[Mixture[QARow] | None] = (
        context.store_rows(f"{name}.ptx", [ptx.data], QARow, stream_demonstrations) if ptx else nullcontext()
    )
    with (
        demonstrations as ptx_rows,
        context.terminal.bar(name) as log.bar,
        Groups(
            config,
            policy=policy,
            signals=signals,
            thresholds=limits,
            template=context.config.template,
            seed=seed,
            ptx_rows=ptx_rows,
            state_dir=out,
        ) as groups,
    ):
        nodes = groups.nodes()
        train(config, groups, stream, seed, 1, log.add)
        get(groups.learner.call("export", out / "policy"), config.learner.timeout_s, "the learner (saving the policy)")
    means = {key: value for key, value in limits.items() if config.signals[key].constraint.statistic == "mean"}
    noted = {"thresholds": means, "limits": limits, "nodes": nodes, "steps": log.steps}
    write_json(run_file(context.folder.path, name), noted)
    return log.closing_line()


def _signal_models(context: Context, name: str, config: RLHF, key: str, policy: str) -> SignalModels:
    """What signal `key` is made from. Raises CastorError when its judge or its critic would not fit the run."""
    signal = config.signals[key]
    judge = None if signal.model is None else context.folder.model_path(signal.model)
    if judge is not None:
        _check_score_model(name, key, signal, judge)
    if signal.function is not None:
        load_function(signal.function)
    critic = None
    if config.has_critic(key):
        assert signal.critic_start is not None  # `RLHF` has checked it
        critic = context.folder.model_path(signal.critic_start)
        require_same_tokenizer(policy, critic, f"{name}: the critic of signal {key!r}")
    text = PolicyText(policy, context.config.template, config.policy.trust_remote_code)
    return SignalModels(judge, critic, text, Path.cwd())


def limit(signal: Signal, model: str | None) -> float:
    """The limit of a constraint in the unit of its statistic: normalised cost, or a share.

    Raises CastorError when a share must be translated into a cost and the model cannot.
    """
    if signal.threshold is not None:
        return signal.threshold
    assert signal.unsafe_share is not None
    if signal.constraint.statistic == "share":
        return signal.unsafe_share
    assert model is not None  # `Signal` takes the share of a text judge as a share only
    info = read_score_info(model)
    if info.safe_mean is None or info.unsafe_mean is None:
        raise CastorError(
            f"{model} does not know the mean cost of safe and of unsafe responses, so unsafe_share has no threshold: "
            "state threshold instead, or limit the share itself with constraint.statistic share"
        )
    return info.safe_mean + signal.unsafe_share * (info.unsafe_mean - info.safe_mean)


def _check_score_model(run: str, name: str, signal: Signal, model: str) -> None:
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

    def __init__(self, context: Context, name: str, config: RLHF, limits: dict[str, float], out: Path) -> None:
        self.context, self.name, self.config, self.out = context, name, config, out
        self.limits = limits
        self.steps: list[dict[str, Any]] = []
        self.bar: Any = None
        context.tracker.declare(name)

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
        write_jsonl(self.out / "steps.jsonl", self.steps)
        self.context.tracker.log(self.name, result.step, metrics | {"mean_reward": record["mean_reward"]})
        self.bar.update(result.step, self.config.steps)
        self.context.terminal.line(self._line(record))

    def _line(self, record: dict[str, Any]) -> str:
        metrics = record["metrics"]
        seconds = metrics["rollout_s"] + metrics["learn_s"] + metrics["transfer_s"]
        parts = [f"{self.name} step {record['step']:>3}/{self.config.steps}", f"reward {record['mean_reward']:6.2f}"]
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
