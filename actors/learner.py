"""The learner: the policy under DeepSpeed, updated on combined advantages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

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
from castor.algorithms.advantages import combine
from castor.algorithms.policy_loss import IMPORTANCE, PolicyLoss
from castor.config.rlhf import RLHF
from castor.data.rows.schemas import QARow
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.experience import Experience
from castor.io.files import read_json, write_json
from castor.model_reference import ModelReference
from castor.models.policy import LM, save_language_model
from engines.batch import (
    MiniBatch,
    forward_shared,
    make_micro_batch,
    max_over_ranks,
    order_seed,
    plan_mini_batches,
    seed_step,
    sum_over_ranks,
)
from engines.weights.base import WeightUpdate, sender_class
from engines.weights.collective import Invitation
from engines.weights.collective import Sender as CollectiveSender
from engines.weights.digest import Tensors


@ray.remote
@recorded
class LearnerWorker(SpmdActor, Occupant, Checkpointed, Watched, TorchTraced):
    """One rank of the learner."""

    @during("model")
    def load(
        self, model: ModelReference, config: RLHF, seed: int, template: str, ptx_rows: Sequence[QARow] | None
    ) -> None:
        """Load the policy into its engine; `ptx_rows` are the demonstrations of PTX, where it is on. Collective."""
        with phase(IMPORTS):
            from castor.models.device import device, resolve_dtype
            from castor.models.policy import PolicyModel
            from engines.deepspeed_engine import TrainEngine, loading

        self.model = model = ModelReference.of(model)
        self.config, self.seed = config, seed
        self.learner = config.learner
        torch.set_num_threads(self.learner.resources.threads)
        torch.manual_seed(self.seed)
        self.device = device()
        engine, head_dtype = self.learner.engine, config.rollout.head_dtype
        with loading(engine):
            policy = PolicyModel.load(model, resolve_dtype(engine.dtype), engine=engine, head_dtype=head_dtype)
        self.policy = policy
        self.adapter = None
        if config.policy.lora is not None:
            with phase(IMPORTS):
                from engines.adapter import Adapter

            self.adapter = Adapter(policy, config.policy.lora, self.rank, self.world_size)
        updates = self.config.steps * self.learner.update_iters * self.learner.mini_batches
        with phase("engine"):
            self.engine = TrainEngine(policy, self.learner.engine, updates)
        self.version, self.whole = 0, True  # of the weights; not whole between the updates of one step
        self.senders = {name: sender_class(name)(keep=self.rank == 0) for name in {"host", config.transfer}}
        self.ptx = None
        if self.learner.ptx is not None:
            from actors.ptx import PTXStream

            if ptx_rows is None:
                raise ValueError("PTX is on but no demonstrations were given")
            tokenizer = load_tokenizer(model)
            limit = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
            self.ptx = PTXStream(self.learner.ptx, ptx_rows, PromptTemplate(tokenizer, template), limit, seed)

    def move(self, part: Part | None) -> None:
        """The policy, with all that its training needs. Collective."""
        if part is None:
            self.engine.leave_gpu()
        elif self.on_gpu is None:
            self.engine.return_to_gpu()

    @property
    def state_step(self) -> int | None:
        """The version of the weights."""
        return self.version if self.whole else None

    def copy_state(self) -> Write:
        """The engine's state, and the place in PTX's demonstrations."""
        engine, state = self.engine.snapshot(), {"ptx_position": self.ptx.position if self.ptx else 0}

        def write(folder: Path) -> list[Path]:
            files = engine.write(folder)
            if self.rank == 0:
                write_json(folder / LEARNER_STATE, state)
                files.append(folder / LEARNER_STATE)
            return files

        return write

    def read_state(self, folder: Path, step: int) -> None:
        """Raises KeyError when it is of another model."""
        self.engine.load(folder)
        if self.ptx is not None:
            self.ptx.position = read_json(folder / LEARNER_STATE)["ptx_position"]
        self.version, self.whole = step, True

    def measure_kl(self, batch: StepBatch) -> tuple[float, int]:
        """Mean KL of the batch in nats a response (k1: Σ_t log π - log π_ref), and its number of responses."""
        experience = Experience.concatenate(read(batch.experience))
        return _kl_per_response(experience, np.concatenate(read(batch.reference))), len(experience)

    def step(
        self, step: int, batch: StepBatch, advantages: dict[str, Any], coefficients: Coefficients | None
    ) -> dict[str, float]:
        """One policy update. Collective.

        Args:
            step: number of the step; with the seed it decides the mini-batches.
            batch: the step's experience.
            advantages: per signal, a ref to its advantages [R] float32.
            coefficients: of this batch; None where nothing is adapted.

        Returns:
            Metrics over all ranks: actor_loss (of the surrogate alone), clip_fraction, bounded_log_ratios (response
            tokens of an update whose log-ratio was beyond `MAX_LOG_RATIO`), entropy_estimate (nats per token), kl_loss
            and entropy (nats per token) where they are in the loss, grad_norm, ptx_loss, skipped_updates (whose
            gradient was not finite, and which are in none of the others; where all were skipped, these are left out),
            logprob_gap_mean and _max, kl (nats per response, Σ_t log π - log π_ref, of the policy that sampled),
            response_tokens, tokens, response_length, truncated_share, learning_rate. Where the old log-probabilities
            are the learner's also importance_mean, _max and _truncated_share (of the ratio before truncation). With
            max_staleness over 0 also staleness_mean and _max (of response tokens, in versions); the gap is then that of
            the tokens of this version, and is left out where there are none.

        Raises:
            RuntimeError: the learner's and the rollout's log-probabilities are too far apart: the engines hold other
                weights than the learner, or compute something else. Or a token is older than max_staleness allows.
        """
        self.require_on_gpu("policy")
        seed_step(self.seed, step, self.rank)
        experience = Experience.concatenate(read(batch.experience))
        columns = {
            "reference": np.concatenate(read(batch.reference)),
            "advantages": self._combined(advantages, coefficients),
        }
        plan = plan_mini_batches(
            experience,
            self.learner,
            self.learner.engine,
            rank=self.rank,
            world_size=self.world_size,
            seed=order_seed(self.seed, step, batch.attempt),
        )
        extra: dict[str, float] = {"skipped_updates": 0.0}
        if self.config.rollout.max_staleness:
            extra |= self._staleness(step, experience)
            columns["fresh"] = (experience.versions == step - 1).astype(np.float32)
        if self.config.own_old_logprobs and self.learner.update_iters * self.learner.mini_batches > 1:
            columns["proximal"] = self._proximal(experience)  # a single update takes its own forward pass
        kl_coeff = 0.0 if self.config.advantage.kl_in_reward else effective_kl_coeff(self.config, coefficients)
        updates: list[dict[str, float]] = []
        for number, mini in enumerate(plan):
            sums = self._accumulate(experience, mini, columns, kl_coeff)
            if number == 0:  # before the first update the learner holds the very weights that sampled the fresh tokens
                gap = self._check_gap(sums, mini.tokens)
            self.whole = False
            try:
                norm = self.engine.step()
            except FloatingPointError:  # the weights are as before it
                extra["skipped_updates"] += 1
                continue
            updates.append(
                {
                    "actor_loss": sums["loss"],
                    "clip_fraction": sums["clipped"] / mini.tokens,
                    "bounded_log_ratios": sums["bounded"],
                    "entropy_estimate": -sums["logprob"] / mini.tokens,
                    "grad_norm": norm,
                    **{key: sums[key] for key in ("kl_loss", "entropy", "ptx_loss") if key in sums},
                    **{key: sums[key] / mini.tokens for key in IMPORTANCE if key in sums},
                }
            )
            if self.config.own_old_logprobs:
                extra["importance_max"] = max(extra.get("importance_max", 0.0), sums["importance_max"])
        self.version, self.whole = step, True
        return {
            **{key: float(np.mean([update[key] for update in updates])) for key in (updates[0] if updates else ())},
            **gap,
            **extra,
            "kl": _kl_per_response(experience, columns["reference"]),
            "response_tokens": float(experience.response_lengths.sum()),
            "tokens": float(len(experience.tokens)),
            "response_length": float(experience.response_lengths.mean()),
            "truncated_share": float(experience.truncated.mean()),
            "learning_rate": self.engine.learning_rate,
        }

    def _combined(self, advantages: dict[str, Any], coefficients: Coefficients | None) -> NDArray[np.float32]:
        """[R] float32 combined advantages under the multipliers of this batch."""
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
            coefficients.multipliers if coefficients else {},
            objective_share=coefficients.objective_share if coefficients else 1.0,
            plain=self.config.advantage.combination == "plain",
        ).numpy()

    def _accumulate(
        self, experience: Experience, mini: MiniBatch, columns: dict[str, NDArray[np.float32]], kl_coeff: float
    ) -> dict[str, float]:
        """Backward passes of one mini-batch; the figures of `PolicyLoss`, and ptx_loss, over all ranks."""
        loss = PolicyLoss(
            self.learner,
            kl_coeff=kl_coeff,
            own_old=self.config.own_old_logprobs,
            fresh="fresh" in columns,
            sequences=mini.sequences,
            tokens=mini.tokens,
        )
        for sequences in mini.micro:
            micro = make_micro_batch(experience, sequences, columns, self.learner.engine.pack_length, self.device)
            output = self.engine.forward(
                micro.rows, micro.response_positions, self.config.rollout.temperature, loss.with_entropy
            )
            whole = loss.add(output, micro.lengths, micro.columns) if len(sequences) else output.sum() * 0.0
            self.engine.accumulate(whole)
        sums = loss.sums
        if self.ptx is not None:
            sums["ptx_loss"] = self.ptx.accumulate(self.engine, self.learner.engine, self.rank, self.world_size)
        return {**sum_over_ranks(sums), **{key: max_over_ranks(value) for key, value in loss.maxima.items()}}

    def _check_gap(self, sums: dict[str, float], tokens: int) -> dict[str, float]:
        """The gap of the first mini-batch, over the tokens that the weights before the update sampled."""
        measured = sums.get("fresh", tokens)
        if not measured:
            return {}
        mean = sums["gap"] / measured
        if not mean <= self.learner.logprob_gap_alarm:
            raise RuntimeError(
                f"learner and rollout log-probabilities differ by {mean:.3g} on average (alarm at "
                f"{self.learner.logprob_gap_alarm:g}): the engines do not hold the learner's weights, or compute "
                "something else; check dtype, attention and the weight transfer"
            )
        return {"logprob_gap_mean": mean, "logprob_gap_max": sums["gap_max"]}

    def _staleness(self, step: int, experience: Experience) -> dict[str, float]:
        """How many versions the response tokens are behind the one this step updates."""
        staleness, allowed = step - 1 - experience.versions, self.config.rollout.max_staleness
        if staleness.min() < 0 or staleness.max() > allowed:
            raise RuntimeError(
                f"step {step} updates version {step - 1} and was given tokens of versions {experience.versions.min()} "
                f"to {experience.versions.max()}: max_staleness allows {allowed} versions behind"
            )
        return {"staleness_mean": float(staleness.mean()), "staleness_max": float(staleness.max())}

    def _proximal(self, experience: Experience) -> NDArray[np.float32]:
        """[R] float32 log-probabilities under the weights before the step's updates, on every rank. Collective."""
        return forward_shared(
            experience,
            lambda micro: self.engine.infer(micro.rows, micro.response_positions, self.config.rollout.temperature),
            engine=self.learner.engine,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
        )

    def reference_logprobs(self, experience: Experience) -> NDArray[np.float32] | None:
        """The reference policy's answer (`ReferenceWorker.logprobs`) where there is an adapter: the weights without it.

        Collective under ZeRO-3, where rank 0 answers; up to ZeRO-2 any rank does by itself.
        """
        assert self.adapter is not None
        self.require_on_gpu("policy")
        return self.adapter.reference_logprobs(self.engine, experience, self.config.rollout.temperature)

    def invite(self, transport: str, workers: int, timeout_s: float) -> Invitation:
        """Open a group in which `workers` of vLLM's processes get the weights from now on. On rank 0."""
        sender = cast(CollectiveSender, self.senders[transport])
        return sender.invite(ray.util.get_node_ip_address(), workers, timeout_s)

    def publish(self, version: int | None = None, invitation: Invitation | None = None) -> WeightUpdate | None:
        """The policy's weights as `version` (default: what it is), from rank 0: to a group, or to whoever wants them.

        Collective.
        """
        self.require_on_gpu("policy")
        sender = self.senders[invitation.transport if invitation else "host"]
        if invitation is not None:
            cast(CollectiveSender, sender).accept(invitation)
        version = self.version if version is None else version
        if self.adapter is not None and self.config.sampled_adapter is not None:
            return self.adapter.publish(self.engine, sender, version)
        return sender.send(self._weights(), version)

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder, whole or not at all. Collective; rank 0 writes.

        A policy with an adapter has it merged, and the adapter itself is written beside the folder, in peft's format.
        """
        if self.adapter is not None:
            self.adapter.save(self.engine, folder, self.model.name)
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in self._weights() if self.rank == 0}
        if self.rank == 0:
            save_language_model(folder, self.policy.lm, weights, self.model)

    def _weights(self) -> Tensors:
        """The policy's whole weights under their Hugging Face names, on the device. Collective.

        Each holds its values until the next one is asked for.
        """
        if self.adapter is not None:
            return self.adapter.merged(self.engine)
        return ((name.removeprefix(LM), tensor) for name, tensor in self.engine.whole_tensors(lambda name: True))


LEARNER_STATE = "learner.json"


def _kl_per_response(experience: Experience, reference: NDArray[np.float32]) -> float:
    return float((experience.logprobs - reference).sum() / len(experience))
