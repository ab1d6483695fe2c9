"""One RLHF run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from castor.run.actors import Actors, Frozen, Trained, rollout_workers
from castor.run.files import StageFiles
from castor.run.stages.stage import ANY_MODEL, LANGUAGE_MODEL, Kind, Read, RowsRead, Stage, helper, most_rows

if TYPE_CHECKING:
    from castor.config.judge import Judge
    from castor.config.model import ModelOption
    from castor.config.rlhf import RLHF
    from castor.config.rollout import Rollout
    from castor.config.signal import Signal


class RLHFStage(Stage):
    """PPO, PPO-Lag and their kin: which one follows from the signals and the multiplier rule."""

    field, makes, summary = "rlhf", "language model", "The RLHF runs of CONFIG."
    runner = "trainers.rlhf.stage:run_rlhf"

    section: RLHF

    def models(self) -> Iterator[Read]:
        """The policy, the judges, and what critics start from."""
        yield Read("policy.model", self.section.policy.model, LANGUAGE_MODEL)
        for name, signal in self.section.signals.items():
            if signal.model is not None:
                yield Read(f"signals.{name}.model", signal.model, frozenset({judge_kind(signal)}))
            if signal.critic_model is not None and self.section.has_critic(name):
                yield Read(f"signals.{name}.critic_model", signal.critic_model, ANY_MODEL)

    def rows(self) -> Sequence[RowsRead]:
        """The prompts, and PTX's demonstrations."""
        prompts = [RowsRead("prompts", self.section.prompts, "prompts")]
        ptx = self.section.learner.ptx
        return [*prompts, RowsRead("learner.ptx.data", ptx.data, "demonstrations")] if ptx else prompts

    def starts_from(self) -> ModelOption:
        """The policy."""
        return self.section.policy.model

    @property
    def steps(self) -> int:
        """Its section's."""
        return self.section.steps

    @property
    def rollout(self) -> Rollout:
        """Its section's."""
        return self.section.rollout

    def model_folder(self, files: StageFiles) -> Path:
        """The trained policy."""
        return files.policy

    def actors(self) -> list[Actors]:
        """Rollout workers, reference, learner, a group for every signal, and the owner of what is adapted."""
        run, learner, policy = self.section, self.section.learner, self.section.policy
        actors = [rollout_workers(policy.model, run.rollout)]
        if policy.lora is None:
            frozen = Frozen(policy.model, learner.engine, score=False)
            actors.append(
                Actors("reference", policy.reference.ranks, policy.reference.resources, "frozen policy", (frozen,))
            )
        entropy = learner.entropy_coeff > 0
        trained = Trained(policy.model, learner.engine, learner.ranks, score=False, lora=policy.lora, entropy=entropy)
        work = "policy, and the reference" if policy.lora else "policy"
        actors.append(Actors("learner", learner.ranks, learner.resources, work, (trained,)))
        actors += [self._signal(name) for name in run.signals]
        actors = [replace(each, take_turns=run.colocate) for each in actors]
        if run.has_owner:
            actors.append(helper("MultiplierOwner", self._owned()))
        return actors

    def _signal(self, name: str) -> Actors:
        signal = self.section.signals[name]
        kind = "function" if signal.function else "remote scorer" if signal.http else "frozen"
        holds: list[Frozen | Trained] = []
        if signal.model is not None:
            holds.append(Frozen(signal.model, signal.scoring, score=True))
        work = f"{signal.role}, {kind}"
        if self.section.has_critic(name):
            assert signal.critic_start is not None  # `RLHF` has checked both
            assert signal.critic is not None
            holds.append(Trained(signal.critic_start, signal.critic, signal.ranks, score=True))
            work += ", and its critic"
        return Actors(f"signal-{name}", signal.ranks, signal.resources, work, tuple(holds))

    def _owned(self) -> str:
        """What the multiplier owner keeps, in words."""
        rules = [self.section.multiplier(name).rule for name in self.section.constraints]
        parts = [f"{len(rules)} λ, rule {', '.join(dict.fromkeys(rules))}"] if rules else []
        return " and ".join([*parts, *(["the KL coefficient"] if self.section.advantage.kl_target else [])])

    def judges(self) -> Iterator[tuple[str, Judge]]:
        """Its signals."""
        return ((f"{self.place}.signals.{name}", signal) for name, signal in self.section.signals.items())

    def limits(self) -> dict[str, str]:
        """What each constraint asks for, in words."""
        return {name: _limit(signal) for name, signal in self.section.constraints.items()}

    def findings(self) -> Iterator[str]:
        """Fewer prompts than one step takes, where their number is known."""
        most = most_rows(self.section.prompts)
        if most is not None and most < self.section.prompts_per_step:
            yield (
                f"{self.place}.prompts.limit {most} gives fewer prompts than one step takes, prompts_per_step "
                f"{self.section.prompts_per_step}: raise the one or lower the other"
            )


def _limit(signal: Signal) -> str:
    bound = "the upper confidence bound of " if signal.constraint.confidence else ""
    if signal.constraint.statistic == "share":
        return f"{bound}the share of unsafe responses at most {signal.known_limit:.1%}"
    if signal.known_limit is not None:
        return f"{bound}the mean cost at most {signal.known_limit:g}"
    return f"{bound}the mean cost at most that of {signal.unsafe_share:.1%} unsafe responses, by the cost model"


def judge_kind(signal: Signal) -> Kind:
    """What kind of model judges for a signal with a model."""
    if signal.classifier is not None:
        return "moderation model"
    return "cost model" if signal.role == "constraint" else "reward model"
