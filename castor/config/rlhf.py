"""One RLHF run. Which method it is follows from the signals it lists and the multiplier rule it names."""

from pydantic import Field, model_validator

from castor.config.advantage import Advantage
from castor.config.alarms import Alarms
from castor.config.base import Section
from castor.config.checkpoint import Checkpoint
from castor.config.data import DataSource
from castor.config.learner import Learner
from castor.config.model import ModelOption
from castor.config.multipliers import Constraint, Multipliers
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import LoRA, Offload, Resources


class Reference(Section):
    """The frozen starting point of the policy."""

    HOW = frozenset(
        (
            "ranks",
            "resources",
        )
    )

    ranks: int = Field(1, ge=1, description="actors; each holds the whole model, and they share the responses")
    resources: Resources = Field(default_factory=Resources, description="of one actor")


MAX_LORA_RANK = 512  # of the adapters that vLLM 0.32 samples with


class Policy(Section):
    """The model being trained, and its frozen starting point, the reference."""

    model: ModelOption = Field("stage:sft", description="stage:NAME, a folder, or a hub id")
    reference: Reference = Field(default_factory=Reference, description="the frozen starting point")
    lora: LoRA | None = Field(
        None,
        description="train low-rank adapters instead of the model; the learner is then the reference too, with the "
        "adapters switched off",
    )

    @model_validator(mode="after")
    def _adapter_fits(self) -> "Policy":
        if self.lora is not None and self.reference != Reference():
            raise ValueError("with lora the learner computes the reference: remove the reference section")
        return self


class RLHF(Section):
    """One run of the RLHF loop."""

    HOW = frozenset(("colocate", "checkpoint", "max_restarts", "patience_minutes", "alarms"))

    steps: int = Field(ge=1, description="policy updates")
    prompts: DataSource = Field(default_factory=DataSource, description="prompts to sample from")
    prompts_per_step: int = Field(64, ge=1, description="prompts of one step")
    samples_per_prompt: int = Field(1, ge=1, description="responses sampled to each prompt")
    policy: Policy = Field(default_factory=Policy, description="policy and reference")
    signals: dict[str, Signal] = Field(min_length=1, description="the judges, by name")
    multipliers: Multipliers | None = Field(
        None, description="the rule of every constraint without its own; required with constraints, and only then"
    )
    advantage: Advantage = Field(default_factory=Advantage, description="from scores to advantages")
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")
    learner: Learner = Field(default_factory=Learner, description="the policy's update")
    colocate: bool = Field(
        False,
        description="rollout, judges, critics and learner take turns on the same GPUs, of which each actor then asks "
        "for a share: fewer GPUs are needed, and each step pays for the moves (switch_s)",
    )

    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="when the state of the run is saved, to go on from"
    )

    alarms: Alarms = Field(default_factory=Alarms, description="what the run says of its own numbers")
    patience_minutes: float = Field(
        10.0, ge=0, description="how long the run pauses for a remote scorer that cannot be reached, before it ends"
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="restarts of groups that lost an actor (learner, critics, judges, reference) before failing; the "
        "loss of a node counts only where the run has come no further since the one before",
    )

    @property
    def constraints(self) -> dict[str, Signal]:
        """The signals that are constraints, in the config's order."""
        return {name: signal for name, signal in self.signals.items() if signal.role == "constraint"}

    @property
    def objectives(self) -> dict[str, Signal]:
        """The signals that are maximised, in the config's order."""
        return {name: signal for name, signal in self.signals.items() if signal.role == "objective"}

    def multiplier(self, name: str) -> Multipliers:
        """The rule that prices the constraint `name`."""
        rule = self.signals[name].multiplier or self.multipliers
        assert rule is not None  # `_constraints_are_priced`
        return rule

    @property
    def sampled_adapter(self) -> LoRA | None:
        """The adapter that the engines hold apart from the model; None: they hold the policy as a whole."""
        apart = self.rollout.adapters == "apart" or (
            self.rollout.adapters == "auto" and self.rollout.resources.gpus > 0
        )
        return self.policy.lora if apart else None

    @property
    def transfer(self) -> str:
        """How weights reach the engines, decided: host, gloo, nccl or ipc."""
        if self.rollout.transfer != "auto":
            return self.rollout.transfer
        if self._engines_finish_first or self.colocate:
            return "host"
        return "nccl" if self._own_gpus else "ipc" if self._one_gpu else "host"

    @property
    def _own_gpus(self) -> bool:
        """Whether every rank of the learner and every engine has whole GPUs: NCCL refuses to meet itself on one."""
        return min(self.learner.resources.gpus, self.rollout.resources.gpus) >= 1

    @property
    def _one_gpu(self) -> bool:
        """Whether learner and engines share a GPU because everything of the run does."""
        if min(self.learner.resources.gpus, self.rollout.resources.gpus) == 0:
            return False
        groups = [(self.learner.ranks, self.learner.resources), (self.rollout.workers, self.rollout.resources)]
        groups += [(signal.ranks, signal.resources) for signal in self.signals.values()]
        if self.policy.lora is None:
            groups.append((self.policy.reference.ranks, self.policy.reference.resources))
        return sum(count * resources.gpus for count, resources in groups) <= 1

    @property
    def _engines_finish_first(self) -> bool:
        return self.rollout.max_staleness > 0 and self.rollout.on_new_weights == "finish"

    @property
    def has_owner(self) -> bool:
        """Whether anything is adapted between steps: multipliers, or the KL coefficient."""
        return bool(self.constraints) or self.advantage.kl_target is not None

    @property
    def own_old_logprobs(self) -> bool:
        """Whether PPO's old log-probabilities are the learner's, and tokens are weighted by the ratio to the engine's.

        On GPUs neither kernels nor the rounding of the two are the same, and stale tokens are of other weights.
        """
        if self.learner.old_logprobs == "auto":
            return self.learner.resources.gpus > 0 or self.rollout.max_staleness > 0
        return self.learner.old_logprobs == "learner"

    def trains_policy(self, name: str) -> bool:
        """Whether the signal enters the loss: all but monitors, and constraints that are only watched (rule none)."""
        if name in self.constraints:
            return self.multiplier(name).rule != "none"
        return name in self.objectives

    def has_critic(self, name: str) -> bool:
        """Whether a critic is made and trained for the signal."""
        return self.advantage.estimator == "gae" and self.trains_policy(name)

    def kl_share(self, name: str) -> float:
        """The part of the KL coefficient in this signal's stream, so that the combined advantage has it once.

        Σ w_j / Σ w = 1 for the objectives and 1 for each constraint make (1 + Σ λ) / (1 + Σ λ) when normalized; a plain
        combination is not divided, so there the constraints carry none.
        """
        if not self.advantage.kl_in_reward:
            return 0.0
        if name in self.constraints:
            return 1.0 if self.advantage.combination == "normalized" else 0.0
        return 1.0 / sum(signal.weight for signal in self.objectives.values())

    @model_validator(mode="after")
    def _constraints_are_priced(self) -> "RLHF":
        if not self.objectives:
            raise ValueError("no objective among the signals: give at least one the role 'objective'")
        for name, signal in self.constraints.items():
            if signal.multiplier is None and self.multipliers is None:
                raise ValueError(f"constraint {name!r} has no price: add a multipliers section")
            self._check_rule(name, signal)
        if self.multipliers is not None and not self.constraints:
            raise ValueError("multipliers without a constraint: set multipliers to null, or add a constraint")
        rules = {self.multiplier(name).rule for name in self.constraints}
        if "crpo" in rules and rules - {"crpo", "none"}:
            raise ValueError(
                f"rule crpo takes turns and cannot share a step with rule {min(rules - {'crpo', 'none'})}: "
                "give it to every constraint, or to none"
            )
        if "crpo" in rules and self.advantage.combination == "plain":
            raise ValueError("rule crpo has no prices to combine: remove advantage.combination")
        return self

    def _check_rule(self, name: str, signal: Signal) -> None:
        rule, wanted = self.multiplier(name), signal.constraint
        if rule.rule == "rectified" and wanted != Constraint():
            raise ValueError(
                f"constraint {name!r}: rule rectified brings its own statistic and policy cost, {{C - threshold}}+: "
                "remove the signal's constraint section, or use another rule"
            )
        if wanted.confidence is not None and min(rule.episode_cost_window_size, self._responses) < 2:
            raise ValueError(f"constraint {name!r}: a single cost has no confidence bound: take at least 2 responses")

    def ranks_within(self, ranks: int) -> int:
        """The most ranks, not over `ranks`, that a step's mini-batches can be divided among; 0 for 0."""
        pieces = self._responses // self.learner.mini_batches
        return next((size for size in range(ranks, 0, -1) if pieces % size == 0), 0)

    @property
    def _responses(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @model_validator(mode="after")
    def _adapter_can_be_sampled_with(self) -> "RLHF":
        if self.sampled_adapter is not None and self.sampled_adapter.rank > MAX_LORA_RANK:
            raise ValueError(
                f"lora.rank {self.sampled_adapter.rank}: vLLM's kernels take at most {MAX_LORA_RANK}; "
                "take less, or set rollout.adapters to merged"
            )
        return self

    @model_validator(mode="after")
    def _one_part_is_trained(self) -> "RLHF":
        if self.policy.lora is not None and self.learner.engine.trained_layers is not None:
            raise ValueError(
                "policy.lora trains adapters in all layers, in place of them: remove it, or "
                "learner.engine.trained_layers"
            )
        return self

    @model_validator(mode="after")
    def _stale_tokens_are_corrected(self) -> "RLHF":
        if self.rollout.max_staleness and not self.own_old_logprobs:
            raise ValueError(
                "learner.old_logprobs rollout with rollout.max_staleness over 0 would clip around weights that are not "
                "those before the step: remove old_logprobs, or set it to learner"
            )
        return self

    @model_validator(mode="after")
    def _turns_can_be_taken(self) -> "RLHF":
        if not self.colocate:
            return self
        if self.rollout.max_staleness:
            raise ValueError(
                "colocate lets rollout and learner take turns, and rollout.max_staleness lets them work at the same "
                "time: leave one of them out"
            )
        if self.rollout.transfer not in ("auto", "host"):
            raise ValueError(
                f"colocate lets rollout and learner take turns, and rollout.transfer {self.rollout.transfer} sends "
                "weights to engines that are awake: leave transfer out"
            )
        engines = {"learner.engine": self.learner.engine}
        engines |= {f"signals.{k}.critic": s.critic for k, s in self.signals.items() if s.critic and self.has_critic(k)}
        for name, engine in engines.items():
            if engine.zero_stage != 2:
                raise ValueError(
                    "colocate moves what is trained off the GPUs between turns, which DeepSpeed does for zero_stage 2 "
                    f"in bfloat16, and that of {name} is {engine.zero_stage}: set it to 2"
                )
            if engine.offload != Offload():
                raise ValueError(
                    f"colocate moves what is trained off the GPUs between turns: remove the offload section of {name}"
                )
        return self

    @model_validator(mode="after")
    def _weights_get_through(self) -> "RLHF":
        if self.transfer == "host":
            return self
        if self._engines_finish_first:
            raise ValueError(
                f"rollout.transfer {self.transfer} would keep the learner waiting until every engine has finished its "
                "responses: set on_new_weights to continue, or take transfer host"
            )
        if self.transfer == "nccl" and not self._own_gpus:
            raise ValueError(
                "rollout.transfer nccl needs whole GPUs on both sides: set learner.resources.gpus and "
                "rollout.resources.gpus to 1 or more, or take transfer host or gloo"
            )
        if self.transfer == "ipc" and max(self.learner.resources.gpus, self.rollout.resources.gpus) >= 1:
            raise ValueError(
                "rollout.transfer ipc needs learner and engines on one GPU: set learner.resources.gpus and "
                "rollout.resources.gpus to shares of it, or take transfer host or nccl"
            )
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> "RLHF":
        if self.advantage.by_group and self.samples_per_prompt < 2:
            raise ValueError(
                f"estimator {self.advantage.estimator} compares the samples of a prompt: set samples_per_prompt to 2 "
                "or more"
            )
        for name, signal in self.signals.items():
            if not self.has_critic(name):
                continue
            if signal.critic is None:
                raise ValueError(
                    f"signal {name!r} has no critic, which estimator gae needs: give it one, or another estimator"
                )
            if signal.critic_start is None:
                raise ValueError(
                    f"signal {name!r} is judged by the {signal.source}, so estimator gae has nothing to start its "
                    "critic from: give it a critic_model, or take an estimator without critics"
                )
        responses = self._responses
        pieces = self.learner.ranks * self.learner.mini_batches
        if responses % pieces:
            raise ValueError(
                f"{responses} responses a step (prompts_per_step x samples_per_prompt) cannot be divided into "
                f"{self.learner.mini_batches} mini-batches over {self.learner.ranks} ranks: "
                f"make them a multiple of {pieces}"
            )
        return self
