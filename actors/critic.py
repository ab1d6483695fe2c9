"""The critic of a signal: a trainable model that predicts the return at every response token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.startup import IMPORTS, phase
from castor.config.rlhf import RLHF
from castor.config.training import Engine
from castor.dealing import deal
from castor.experience import Experience
from castor.model_reference import ModelLike
from engines.batch import (
    MicroBatch,
    forward_shared,
    make_micro_batch,
    order_seed,
    plan_mini_batches,
    seed_step,
    sum_over_ranks,
)


class Critic:
    """One rank of a critic. All methods are collective."""

    def __init__(
        self, name: str, model: ModelLike, config: RLHF, engine: Engine, seed: int, rank: int, world: int
    ) -> None:
        """From the weights of the score model; that of a classifier's cost, and one with a `critic_model`, is the
        backbone of `model` with a fresh scalar head, the same one on every rank.
        """
        with phase(IMPORTS):
            from castor.models.device import device, resolve_dtype
            from castor.models.load import load_critic
            from castor.models.score import ScoreInfo, ScoreModel
            from engines.deepspeed_engine import TrainEngine, loading

        self.config, self.engine_config, self.seed, self.rank, self.world = config, engine, seed, rank, world
        self.device, dtype = device(), resolve_dtype(engine.dtype)
        signal = config.signals[name]
        with loading(engine):
            if signal.classifier is None and signal.critic_model is None:
                critic = load_critic(model, dtype)
            else:
                torch.manual_seed(seed)
                critic = ScoreModel.from_backbone(model, ScoreInfo("critic"), dtype)
        self.model = critic
        self.updates = config.learner.update_iters * config.learner.mini_batches  # of one step
        with phase("engine"):
            self.engine = TrainEngine(critic, engine, config.steps * self.updates)
        self.predicted: Tensor | None = None  # by the step's only forward pass, with its graph, until `train` takes it
        self.on_device = True
        self.step: int | None = 0  # that of the weights; None between the updates of one

    def move(self, onto_device: bool) -> None:
        """Model and optimiser state to the GPU, or away from it, unless they are there."""
        if onto_device != self.on_device:
            (self.engine.return_to_gpu if onto_device else self.engine.leave_gpu)()
            self.on_device = onto_device

    def values(self, experience: Experience) -> NDArray[np.float32]:
        """[R] float32 predicted return before each response token, on every rank.

        Where one update of one micro-batch follows, its forward pass is this one, and `train` finds it done.
        """
        self.predicted = None
        return forward_shared(
            experience,
            self._predict_once if self._one_pass(experience) else self._predict,
            engine=self.engine_config,
            device=self.device,
            rank=self.rank,
            world_size=self.world,
        )

    def _one_pass(self, experience: Experience) -> bool:
        if self.updates > 1 or self.config.colocate:  # colocated critics share the GPU that would have to keep it
            return False
        budget = self.engine_config.micro_batch_tokens
        return len(deal(experience.lengths, self.world, budget, experience.groups)[self.rank]) == 1

    def _predict(self, micro: MicroBatch) -> Tensor:
        return self.engine.infer(micro.rows, micro.response_positions - 1)

    @torch.enable_grad()
    def _predict_once(self, micro: MicroBatch) -> Tensor:
        self.predicted = self.engine.forward(micro.rows, micro.response_positions - 1)
        return self.predicted.detach()

    def train(
        self,
        experience: Experience,
        values: NDArray[np.float32],
        returns: NDArray[np.float32],
        step: int,
        attempt: int = 0,
    ) -> dict[str, float]:
        """Fit to `returns` [R]; `values` [R] are those before the step. Mini-batches are the learner's.

        Returns critic_skipped_updates (whose gradient was not finite), and of the others, if any, critic_loss (mean)
        and critic_grad_norm (of the last).
        """
        from castor.algorithms.losses import clipped_value_loss
        from castor.algorithms.ragged import token_weights

        learner, clip = self.config.learner, self.config.advantage.clip_range_value
        columns = {"values": values, "returns": returns}
        plan = plan_mini_batches(
            experience,
            learner,
            self.engine_config,
            rank=self.rank,
            world_size=self.world,
            seed=order_seed(self.seed, step, attempt),
        )
        seed_step(self.seed, step, self.rank)
        losses, norm, skipped = list[float](), 0.0, 0
        for mini in plan:
            loss_sum = 0.0
            for sequences in mini.micro:
                micro = make_micro_batch(experience, sequences, columns, self.engine_config.pack_length, self.device)
                predicted, self.predicted = self.predicted, None
                if predicted is None:
                    predicted = self.engine.forward(micro.rows, micro.response_positions - 1)
                weights = token_weights(micro.lengths, learner.loss_normalization, mini.sequences, mini.tokens)
                per_token = clipped_value_loss(predicted, micro.columns["values"], micro.columns["returns"], clip)
                loss = (weights * per_token).sum() if len(sequences) else predicted.sum() * 0.0
                self.engine.accumulate(loss)
                loss_sum += float(loss.detach())
            self.step = None
            try:
                norm = self.engine.step()
            except FloatingPointError:  # the weights are as before it
                skipped += 1
                continue
            losses.append(sum_over_ranks({"loss": loss_sum})["loss"])
        self.step = step
        fitted = {"critic_loss": float(np.mean(losses)), "critic_grad_norm": norm} if losses else {}
        return {"critic_skipped_updates": float(skipped), **fitted}
