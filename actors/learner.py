"""The learner: the policy under DeepSpeed, updated on combined advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.batch import (
    MiniBatch,
    StepBatch,
    make_micro_batch,
    max_over_ranks,
    plan_mini_batches,
    read,
    sum_over_ranks,
)
from actors.group import SpmdActor
from actors.multipliers import Prices, effective_kl_coeff
from actors.weights import WeightUpdate, publish
from castor.algorithms.advantages import combine
from castor.algorithms.kl import k3
from castor.algorithms.losses import clipped_policy_loss
from castor.algorithms.ragged import token_weights
from castor.checkpoint import atomic_folder
from castor.config.rlhf import RLHF
from castor.data.rows import QARow
from castor.data.template import PromptTemplate, load_tokenizer
from castor.experience import Experience


@ray.remote
class LearnerWorker(SpmdActor):
    """One rank of the learner."""

    def load(self, model: str, config: RLHF, seed: int, template: str, ptx_rows: Sequence[QARow] | None) -> None:
        """Load the policy into its engine; `ptx_rows` are the demonstrations of PTX, where it is on. Collective."""
        from actors.deepspeed_engine import TrainEngine, device, resolve_dtype
        from castor.models.policy import PolicyModel

        self.model, self.config, self.seed = model, config, seed
        self.learner = config.learner
        torch.set_num_threads(self.learner.resources.threads)
        torch.manual_seed(self.seed)
        self.device = device()
        policy = PolicyModel.load(
            self.model, resolve_dtype(self.learner.engine.dtype), self.config.policy.trust_remote_code
        )
        self.lm = policy.lm
        self.adapter = None
        if config.policy.lora is not None:
            from actors.adapter import Adapter

            self.adapter = Adapter(policy, config.policy.lora, self.rank, self.world_size)
        updates = self.config.steps * self.learner.update_iters * self.learner.mini_batches
        self.engine = TrainEngine(policy, self.learner.engine, updates)
        self.ptx = None
        if self.learner.ptx is not None:
            from actors.ptx import PTXStream

            if ptx_rows is None:
                raise ValueError("PTX is on but no demonstrations were given")
            tokenizer = load_tokenizer(model, config.policy.trust_remote_code)
            limit = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
            self.ptx = PTXStream(self.learner.ptx, ptx_rows, PromptTemplate(tokenizer, template), limit, seed)

    def measure_kl(self, batch: StepBatch) -> tuple[float, int]:
        """Mean KL of the batch in nats a response (k1: Σ_t log π - log π_ref), and its number of responses."""
        experience = Experience.concatenate(read(batch.experience))
        return _kl_per_response(experience, np.concatenate(read(batch.reference))), len(experience)

    def step(self, step: int, batch: StepBatch, advantages: dict[str, Any], prices: Prices | None) -> dict[str, float]:
        """One policy update. Collective.

        Args:
            step: number of the step; with the seed it decides the mini-batches.
            batch: the step's experience.
            advantages: per signal, a ref to its advantages [R] float32.
            prices: the multipliers of this batch; None without constraints.

        Returns:
            Metrics over all ranks: actor_loss (of the surrogate alone), clip_fraction, entropy_estimate (nats per
            token), kl_loss and entropy (nats per token) where they are in the loss, grad_norm, ptx_loss,
            logprob_gap_mean and _max, kl (nats per response, Σ_t log π - log π_ref), response_tokens, tokens,
            response_length, truncated_share, learning_rate.

        Raises:
            RuntimeError: the learner's and the rollout's log-probabilities are too far apart: the engines hold other
                weights than the learner, or compute something else.
            FloatingPointError: a gradient is not finite.

        """
        self._seed(step)
        experience = Experience.concatenate(read(batch.experience))
        columns = {
            "reference": np.concatenate(read(batch.reference)),
            "advantages": self._combined(advantages, prices),
        }
        plan = plan_mini_batches(
            experience,
            self.learner,
            self.learner.engine,
            rank=self.rank,
            world_size=self.world_size,
            seed=(self.seed, step),
        )
        kl_coeff = 0.0 if self.config.advantage.kl_in_reward else effective_kl_coeff(self.config, prices)
        updates: list[dict[str, float]] = []
        for mini in plan:
            sums = self._accumulate(experience, mini, columns, kl_coeff)
            if not updates:  # before the first update the learner holds the very weights that sampled
                gap = self._check_gap(sums["gap"] / mini.tokens, sums.pop("gap_max"))
            norm = self.engine.step()
            updates.append(
                {
                    "actor_loss": sums["loss"],
                    "clip_fraction": sums["clipped"] / mini.tokens,
                    "entropy_estimate": -sums["logprob"] / mini.tokens,
                    "grad_norm": norm,
                    **{key: sums[key] for key in ("kl_loss", "entropy", "ptx_loss") if key in sums},
                }
            )
        return {
            **{key: float(np.mean([update[key] for update in updates])) for key in updates[0]},
            **gap,
            "kl": _kl_per_response(experience, columns["reference"]),
            "response_tokens": float(experience.response_lengths.sum()),
            "tokens": float(len(experience.tokens)),
            "response_length": float(experience.response_lengths.mean()),
            "truncated_share": float(experience.truncated.mean()),
            "learning_rate": self.engine.learning_rate,
        }

    def _seed(self, step: int) -> None:
        """Dropout of a step follows from seed, step and rank, so that no state has to be kept."""
        sequence = np.random.SeedSequence([self.seed, step, self.rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _combined(self, advantages: dict[str, Any], prices: Prices | None) -> NDArray[np.float32]:
        """[R] float32 combined advantages under the prices of this batch."""
        names = [name for name in advantages if self.config.trains_policy(name)]
        arrays = read([advantages[name] for name in names])
        streams = {name: torch.from_numpy(np.array(array)) for name, array in zip(names, arrays, strict=True)}
        roles = {name: signal.role for name, signal in self.config.signals.items()}
        objectives = {name: stream for name, stream in streams.items() if roles[name] == "objective"}
        constraints = {name: stream for name, stream in streams.items() if roles[name] == "constraint"}
        weights = {name: self.config.signals[name].weight for name in objectives}
        return combine(
            objectives,
            weights,
            constraints,
            prices.values if prices else {},
            objective_share=prices.objective_share if prices else 1.0,
            plain=self.config.advantage.combination == "plain",
        ).numpy()

    def _accumulate(
        self, experience: Experience, mini: MiniBatch, columns: dict[str, NDArray[np.float32]], kl_coeff: float
    ) -> dict[str, float]:
        """Backward passes of one mini-batch; sums over all ranks (gap_max: the maximum)."""
        with_kl, with_entropy = kl_coeff > 0, self.learner.entropy_coeff > 0
        sums = dict.fromkeys(("loss", "clipped", "logprob", "gap"), 0.0)
        if with_kl:
            sums["kl_loss"] = 0.0
        if with_entropy:
            sums["entropy"] = 0.0
        gap_max = 0.0
        for sequences in mini.micro:
            micro = make_micro_batch(experience, sequences, columns, self.learner.engine.pack_length, self.device)
            output = self.engine.forward(
                micro.rows, micro.response_positions, self.config.rollout.temperature, with_entropy
            )
            if not len(sequences):
                self.engine.accumulate(output.sum() * 0.0)
                continue
            logprobs = output[0] if with_entropy else output
            old = micro.columns["logprobs"]
            weights = token_weights(micro.lengths, self.learner.loss_normalization, mini.sequences, mini.tokens)
            loss = total = (weights * self._surrogate(logprobs, old, micro.columns["advantages"])).sum()
            if with_kl:
                kl_loss = (weights * k3(logprobs, micro.columns["reference"])).sum()
                total = total + kl_coeff * kl_loss
                sums["kl_loss"] += float(kl_loss.detach())
            if with_entropy:
                entropy = (weights * output[1]).sum()
                total = total - self.learner.entropy_coeff * entropy
                sums["entropy"] += float(entropy.detach())
            self.engine.accumulate(total)
            with torch.no_grad():
                gap = (logprobs - old).abs()
                sums["loss"] += float(loss)
                sums["clipped"] += float(self._outside(logprobs, old).sum())
                sums["logprob"] += float(logprobs.sum())
                sums["gap"] += float(gap.sum())
                gap_max = max(gap_max, float(gap.max()))
        if self.ptx is not None:
            sums["ptx_loss"] = self.ptx.accumulate(self.engine, self.learner.engine, self.rank, self.world_size)
        return {**sum_over_ranks(sums), "gap_max": max_over_ranks(gap_max)}

    def _surrogate(self, logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        low, high = self.learner.clip_range
        return clipped_policy_loss(logprobs, old, advantages, low, high, dual_clip=self.learner.dual_clip)

    def _outside(self, logprobs: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """[R] whether the ratio has left the clip range."""
        low, high = self.learner.clip_range
        moved = torch.exp(logprobs - old) - 1.0
        return (moved > high) | (-moved > low)

    def _check_gap(self, mean: float, maximum: float) -> dict[str, float]:
        if not mean <= self.learner.logprob_gap_alarm:
            raise RuntimeError(
                f"learner and rollout log-probabilities differ by {mean:.3g} on average (alarm at "
                f"{self.learner.logprob_gap_alarm:g}): the engines do not hold the learner's weights, or compute "
                "something else; check dtype, attention and the weight transfer"
            )
        return {"logprob_gap_mean": mean, "logprob_gap_max": maximum}

    def reference_logprobs(self, experience: Experience) -> NDArray[np.float32] | None:
        """The reference policy's answer (`ReferenceWorker.logprobs`) where there is an adapter: the weights without it.

        Collective under ZeRO-3, where rank 0 answers; up to ZeRO-2 any rank does by itself.
        """
        assert self.adapter is not None
        return self.adapter.reference_logprobs(self.engine, experience, self.config.rollout.temperature)

    def publish(self, version: int) -> WeightUpdate | None:
        """The policy's weights as `version`, from rank 0. Collective."""
        if self.adapter is not None:
            return self.adapter.publish(self.engine, version)
        return publish(self._weights(), version, keep=self.rank == 0)

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder, whole or not at all. Collective; rank 0 writes.

        A policy with an adapter has it merged, and the adapter itself is written beside the folder, in peft's format.
        """
        if self.adapter is not None:
            self.adapter.save(self.engine, folder, self.model)
        weights = {name: tensor for name, tensor in self._weights() if self.rank == 0}
        if self.rank == 0:
            with atomic_folder(folder) as aside:
                self.lm.save_pretrained(aside, state_dict=weights)
                load_tokenizer(self.model).save_pretrained(aside)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The policy's whole weights under their Hugging Face names, on the CPU. Collective."""
        if self.adapter is not None:
            return self.adapter.merged(self.engine)
        return ((name.removeprefix(_PREFIX), tensor) for name, tensor in self.engine.named_tensors())


_PREFIX = "lm."  # PolicyModel holds the language model as `lm`; weights travel under their Hugging Face names


def _kl_per_response(experience: Experience, reference: NDArray[np.float32]) -> float:
    return float((experience.logprobs - reference).sum() / len(experience))
