"""A signal: the frozen score model that judges finished responses, and the critic that predicts its return."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.batch import (
    MiniBatch,
    StepBatch,
    gather_tokens,
    make_micro_batch,
    plan_mini_batches,
    read,
    sum_over_ranks,
)
from actors.group import SpmdActor
from actors.scorer import Scorer
from castor.config.rlhf import RLHF, Learner
from castor.experience import Experience


@ray.remote
class SignalWorker(SpmdActor):
    """One rank of a signal's group. Every rank scores on its own; the critic is trained by all of them together."""

    def load(self, name: str, model: str, config: RLHF, seed: int) -> None:
        """Load the score model, and the critic from the same weights. Collective."""
        from actors.deepspeed_engine import TrainEngine, device, resolve_dtype
        from castor.models.score import ScoreModel

        self.name, self.model, self.config, self.seed = name, model, config, seed
        self.signal = config.signals[name]
        torch.set_num_threads(self.signal.resources.threads)
        self.device = device()
        dtype = resolve_dtype(self.signal.critic.dtype)
        self.scorer = Scorer(self.model, self.signal.critic)
        updates = self.config.steps * self.config.learner.update_iters * self.config.learner.mini_batches
        self.critic = TrainEngine(ScoreModel.load(self.model, dtype), self.signal.critic, updates)

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores at the last token of each response."""
        return self.scorer.score(experience)

    def advantages(self, batch: StepBatch) -> NDArray[np.float32] | None:
        """[R] float32 advantages of the step's response tokens, from rank 0. Collective.

        Keeps experience, old values and returns for `train_critic`.
        """
        from castor.algorithms.advantages import gae, penalized_stream

        experience = Experience.concatenate(read(batch.experience))
        scores = np.concatenate(read(batch.scores[self.name]))
        columns = {"reference": np.concatenate(read(batch.reference))}
        config, mine = self.config.advantage, []
        (whole,) = self._plan(experience, Learner())
        for sequences in whole.micro:
            micro = make_micro_batch(experience, sequences, columns, self.signal.critic.pack_length, self.device)
            values = self.critic.infer(micro.rows, micro.response_positions - 1)
            if not len(sequences):
                continue
            stream = penalized_stream(
                torch.from_numpy(scores[sequences]).to(self.device),
                micro.columns["logprobs"],
                micro.columns["reference"],
                micro.lengths,
                role=self.signal.role,
                kl_coeff=config.kl_coeff,
                clip_range_score=config.clip_range_score,
            )
            advantages, returns = gae(stream, values, micro.lengths, gamma=config.gamma, gae_lambda=config.gae_lambda)
            mine.append((sequences, torch.stack([advantages, values, returns]).cpu().numpy()))
        advantages, values, returns = gather_tokens(mine, experience.response_lengths)
        self.experience, self.scores, self.targets = experience, scores, {"values": values, "returns": returns}
        return advantages if self.rank == 0 else None

    def train_critic(self, step: int) -> dict[str, float]:
        """Fit the critic to the returns of the last `advantages` call. Collective.

        Returns critic_loss (mean over its updates), critic_grad_norm (of the last), value_mean and return_mean (over
        response tokens), score_mean and score_positive_share (over responses).
        """
        from castor.algorithms.losses import clipped_value_loss
        from castor.algorithms.ragged import token_weights

        losses, norm = [], 0.0
        for mini in self._plan(self.experience, self.config.learner, step):
            loss_sum = 0.0
            for sequences in mini.micro:
                micro = make_micro_batch(
                    self.experience, sequences, self.targets, self.signal.critic.pack_length, self.device
                )
                values = self.critic.forward(micro.rows, micro.response_positions - 1)
                weights = token_weights(
                    micro.lengths, self.config.learner.loss_normalization, mini.sequences, mini.tokens
                )
                per_token = clipped_value_loss(
                    values, micro.columns["values"], micro.columns["returns"], self.config.advantage.clip_range_value
                )
                loss = (weights * per_token).sum() if len(sequences) else values.sum() * 0.0
                self.critic.accumulate(loss)
                loss_sum += float(loss.detach())
            norm = self.critic.step()
            losses.append(sum_over_ranks({"loss": loss_sum})["loss"])
        return {
            "critic_loss": float(np.mean(losses)),
            "critic_grad_norm": norm,
            "score_mean": float(self.scores.mean()),
            "score_positive_share": float((self.scores > 0).mean()),
            "value_mean": float(self.targets["values"].mean()),
            "return_mean": float(self.targets["returns"].mean()),
        }

    def _plan(self, experience: Experience, learner: Learner, step: int = 0) -> Iterator[MiniBatch]:
        return plan_mini_batches(
            experience,
            learner,
            self.signal.critic,
            rank=self.rank,
            world_size=self.world_size,
            seed=(self.seed, step),
        )
