"""A signal: what judges finished responses, and what the policy learns from its scores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.checkpointed import Checkpointed, Write
from actors.group import SpmdActor
from actors.multipliers import Coefficients, effective_kl_coeff
from actors.occupant import Occupant, Part
from actors.processes import Watched
from actors.recording import recorded
from actors.startup import IMPORTS, during, phase
from actors.step_batch import StepBatch, read
from actors.torch_trace import TorchTraced
from castor.config.rlhf import RLHF
from castor.experience import Experience
from castor.model_reference import ModelLike, ModelReference

if TYPE_CHECKING:  # transformers takes seconds to import
    from castor.models.trunk import Trunk

# On CPUs, how much nicer a signal is than the learner. Critics are more in number: with a core of its own the policy's
# update ends before theirs, which then have all cores, and none is idle.
BEHIND = 10


@dataclass(frozen=True)
class SignalModels:
    """Where a signal's judge and critic come from: folders or hub ids, no `stage:` references."""

    judge: ModelLike | None  # the score or moderation model; None: a function or a remote scorer
    critic: ModelLike | None  # what the critic, where there is one, starts from
    policy: ModelReference  # whose tokens the experience holds
    directory: Path | None = None  # where the module of a function is looked for, too


@ray.remote
@recorded
class SignalWorker(SpmdActor, Occupant, Checkpointed, Watched, TorchTraced):
    """One rank of a signal's group. Every rank scores on its own; the critic is trained by all of them together."""

    def __init__(self) -> None:
        super().__init__()
        if not ray.get_gpu_ids():
            os.nice(BEHIND)

    @during("model")
    def load(self, name: str, models: SignalModels, config: RLHF, seed: int, limit: float | None = None) -> None:
        """Load the judge, and where the estimator needs one the critic. Collective.

        `limit` is the constraint's, in the unit of its statistic.
        """
        self.name, self.config, self.limit = name, config, limit
        self.step: int | None = 0
        self.signal = config.signals[name]
        torch.set_num_threads(self.signal.resources.threads)
        with phase(IMPORTS):
            from castor.scoring.experience_scorer import judge_scorer

        signal = self.signal
        self.scorer = judge_scorer(
            signal, signal.measures, models.judge, signal.scoring, models.policy, models.directory
        )
        self.critic = None
        if config.has_critic(name):
            from actors.critic import Critic

            assert models.critic is not None  # `RLHF` has checked it, and that `critic` is given
            assert self.signal.critic is not None
            self.critic = Critic(name, models.critic, config, self.signal.critic, seed, self.rank, self.world_size)
        self.trunk = self._common_trunk()

    def _common_trunk(self) -> Trunk | None:
        """What the judge has computed of a response when its critic comes to it, where that is a part of the critic."""
        from castor.models.score import ScoreModel
        from castor.models.trunk import Trunk, goes_on

        judge, critic = self.scorer.frozen, self.critic
        if judge is None or critic is None or self.signal.critic_model is not None:
            return None
        if not isinstance(judge.model, ScoreModel):
            return None
        trained = critic.engine_config.trained_layers
        if trained is None or self.world_size > 1 or self.config.colocate:  # ranks do not train on what they judge
            return None
        if not goes_on(critic.model.backbone, critic.model.packing, trained):
            return None
        trunk = Trunk(trained, steps=1 + self.config.rollout.max_staleness)
        judge.model.around, critic.model.around = trunk.note, trunk.use
        return trunk

    def move(self, part: Part | None) -> None:
        """The judge, of which a function or a service has nothing on a GPU, or the critic. Collective."""
        if self.scorer.frozen is not None:
            self.scorer.frozen.move(onto_device=part == "judge")
        if self.critic is not None:
            self.critic.move(onto_device=part == "critic")

    @property
    def state_step(self) -> int | None:
        """The step of the critic's last fit, or of the last advantages where there is no critic."""
        return self.step if self.critic is None else self.critic.step

    def copy_state(self) -> Write | None:
        """The critic's engine; what judges is frozen."""
        return None if self.critic is None else self.critic.engine.snapshot().write

    def read_state(self, folder: Path, step: int) -> None:
        """Raises KeyError when it is of another model."""
        self.step = step
        if self.critic is not None:
            self.critic.engine.load(folder)
            self.critic.step = step

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores of the responses."""
        self.require_on_gpu("judge")
        return self.scorer.score(experience)

    def advantages(self, batch: StepBatch, coefficients: Coefficients | None = None) -> NDArray[np.float32] | None:
        """[R] float32 advantages of the step's response tokens, from rank 0. Collective.

        `coefficients` are the batch's: β may be adapted. A constraint that is only watched has no advantages. Keeps
        experience, old values and returns for `train_critic`.
        """
        from castor.algorithms.advantages import critic_free, gae, whiten

        self.scores = np.concatenate(read(batch.scores[self.name]))
        if not self.config.trains_policy(self.name) or (self.critic is None and self.rank > 0):
            return None
        experience, config = Experience.concatenate(read(batch.experience)), self.config.advantage
        lengths = torch.from_numpy(experience.response_lengths.astype(np.int64))
        stream = self._stream(experience, np.concatenate(read(batch.reference)), lengths, coefficients)
        if self.critic is None:
            prompts = torch.from_numpy(experience.uids // self.config.samples_per_prompt)
            advantages = critic_free(
                stream, lengths, prompts, estimator=config.estimator, gamma=config.gamma, group_std=config.group_std
            )
        else:
            self.require_on_gpu("critic")
            values = self.critic.values(experience)
            advantages, returns = gae(
                stream, torch.from_numpy(values), lengths, gamma=config.gamma, gae_lambda=config.gae_lambda
            )
            self.fit = experience, values, returns.numpy(), batch.attempt
        if config.whiten:
            advantages = whiten(advantages)
        return advantages.numpy() if self.rank == 0 else None

    def _stream(
        self,
        experience: Experience,
        reference: NDArray[np.float32],
        lengths: torch.Tensor,
        coefficients: Coefficients | None,
    ) -> torch.Tensor:
        """[R] float32 per-token rewards or costs."""
        from castor.algorithms.advantages import penalized_stream
        from castor.algorithms.constraints import policy_costs

        config, scores = self.config.advantage, torch.from_numpy(self.scores)
        if self.signal.role == "constraint":
            rectified = self.config.multiplier(self.name).rule == "rectified"
            if rectified and self.limit is None:
                raise ValueError(f"constraint {self.name!r} is rectified at its limit, but has been given none")
            scores = policy_costs(
                scores,
                policy_cost=self.signal.constraint.policy_cost,
                rectified_above=self.limit if rectified else None,
            )
        return penalized_stream(
            scores,
            torch.from_numpy(experience.logprobs),
            torch.from_numpy(reference),
            lengths,
            role=self.signal.role,
            kl_coeff=effective_kl_coeff(self.config, coefficients) * self.config.kl_share(self.name),
            clip_range_score=config.clip_range_score,
        )

    def train_critic(self, step: int, *advantages: Any) -> dict[str, float]:
        """Fit the critic, where there is one, to the returns of the last `advantages` call. Collective.

        `advantages` are those of all signals: where one of them could not be made, Ray does not come to this, and no
        critic is a step ahead of the policy.

        Returns score_mean and score_positive_share (over responses); with a critic also what `Critic.train` does, and
        value_mean and return_mean (over response tokens).
        """
        metrics = {
            "score_mean": float(self.scores.mean()),
            "score_positive_share": float((self.scores > 0).mean()),
        }
        self.step = step
        if self.critic is None:
            return metrics
        self.require_on_gpu("critic")
        experience, values, returns, attempt = self.fit
        fitted = self.critic.train(experience, values, returns, step, attempt)
        if self.trunk is not None:
            self.trunk.end_step()
        return {**fitted, **metrics, "value_mean": float(values.mean()), "return_mean": float(returns.mean())}
