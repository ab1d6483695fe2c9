"""How long each call of an RLHF run takes at full speed, from its config, the shapes of its models and a device."""

from __future__ import annotations

from dataclasses import dataclass

from castor.config.model import ModelOption, source_of
from castor.config.rlhf import RLHF
from castor.dry_run.memory import GIB, sampled
from castor.dry_run.placement import PlacedActors, Sizes
from castor.dry_run.shapes import Shape
from castor.io.errors import CastorError
from castor.planner.costs import Costs, Decoder, Tokens

DEMONSTRATION_TOKENS, DEMONSTRATION_RESPONSE = 160, 120  # of PTX: about those of Alpaca


@dataclass(frozen=True)
class Work:
    """Seconds of the calls of a run. Tokens are those of the call."""

    run: RLHF
    sizes: Sizes
    costs: Costs

    def shape(self, option: ModelOption) -> Shape:
        """Raises CastorError for a model whose size is not known on this machine."""
        found = self.sizes(option)
        if found is None:
            raise CastorError(
                f"the size of {source_of(option)} is not known on this machine, and a step's seconds follow from it: "
                "download the model (its config.json is enough), or name a local folder"
            )
        return found

    @property
    def policy(self) -> Shape:
        """The policy's sizes."""
        return self.shape(self.run.policy.model)

    def decoder(self, tokens: float) -> Decoder:
        """One engine. It has as many responses under way as its key-value cache holds, at `tokens` each: prompt and
        response in the mean.
        """
        rollout, held = self.run.rollout, sampled(self.policy, self.run.rollout)
        size = self.costs.size(rollout.dtype)
        if held.takes_rest:
            room = rollout.gpu_memory_utilization * self.costs.device.memory_gib * GIB - held.weights - held.working
        else:
            room = held.kv_cache
        most = int(room / (tokens * self.policy.kv_cache(size, rollout.tensor_parallel_size)))
        slots = max(1, min(rollout.max_num_seqs, most))
        return Decoder(self.costs, self.policy, size, rollout.tensor_parallel_size, slots, rollout.resources.threads)

    def reference(self, tokens: Tokens) -> float:
        """The reference's log-probabilities of a chunk, by one rank (under ZeRO-3 with an adapter: by all)."""
        engine, device = self.run.learner.engine, self.costs.device
        if self.run.policy.lora is not None and engine.zero_stage == 3:
            ranks, threads = self.run.learner.ranks, self.run.learner.resources.threads
            return device.call_s + self.costs.shared_forward(
                self.policy, engine, ranks, tokens, score=False, threads=threads
            )
        asked = self.run.learner if self.run.policy.lora is not None else self.run.policy.reference
        threads = asked.resources.threads
        return device.call_s + self.costs.forward(self.policy, engine, tokens, score=False, threads=threads)

    def judging(self, name: str, tokens: Tokens) -> float:
        """A chunk's scores, by one rank; functions and remote scorers are counted as a call alone."""
        signal = self.run.signals[name]
        if signal.model is None:
            return self.costs.device.call_s
        shape, threads = self.shape(signal.model), signal.resources.threads
        return self.costs.device.call_s + self.costs.forward(shape, signal.scoring, tokens, score=True, threads=threads)

    def values(self, name: str, tokens: Tokens) -> float:
        """A step's advantages of a signal, by all ranks: with a critic its values first."""
        signal, device = self.run.signals[name], self.costs.device
        if not self.run.has_critic(name):
            return device.call_s
        assert signal.critic is not None  # `RLHF` has checked both
        assert signal.critic_start is not None
        shape = self.shape(signal.critic_start)
        threads = signal.resources.threads
        return device.call_s + self.costs.shared_forward(
            shape, signal.critic, signal.ranks, tokens, score=True, threads=threads
        )

    def fitting(self, name: str, tokens: Tokens) -> float:
        """A step's updates of a signal's critic, by all ranks."""
        signal, learner, seconds = self.run.signals[name], self.run.learner, self.costs.device.call_s
        if not self.run.has_critic(name):
            return seconds
        assert signal.critic is not None  # `RLHF` has checked both
        assert signal.critic_start is not None
        shape, part = self.shape(signal.critic_start), tokens.part(1 / learner.mini_batches)
        each = self.costs.training(
            shape, signal.critic, signal.ranks, part, score=True, threads=signal.resources.threads
        )
        each += self.costs.update(shape, signal.critic, signal.ranks, score=True)
        return seconds + learner.update_iters * learner.mini_batches * each

    def learning(self, tokens: Tokens) -> float:
        """A step of the learner, by all ranks, with PTX and the old log-probabilities where it computes them."""
        learner, lora, shape = self.run.learner, self.run.policy.lora, self.policy
        ranks, threads, engine = learner.ranks, learner.resources.threads, learner.engine
        updates = learner.update_iters * learner.mini_batches
        seconds = self.costs.device.call_s
        if self.run.own_old_logprobs and updates > 1:
            seconds += self.costs.shared_forward(shape, engine, ranks, tokens, score=False, threads=threads)
        part = tokens.part(1 / learner.mini_batches)
        each = self.costs.training(shape, engine, ranks, part, score=False, lora=lora, threads=threads)
        if learner.ptx is not None:
            count = learner.ptx.batch_size
            shown = Tokens(count * DEMONSTRATION_TOKENS, count * DEMONSTRATION_RESPONSE, DEMONSTRATION_TOKENS)
            each += self.costs.training(shape, engine, ranks, shown, score=False, lora=lora, threads=threads)
        each += self.costs.update(shape, engine, ranks, score=False, lora=lora)
        return seconds + updates * each

    def publishing(self) -> float:
        """The learner's part of a transfer: all of it, or up to where the weights lie in the node's memory."""
        learner, device, size = self.run.learner, self.costs.device, self._weight_bytes
        seconds = device.transfer_s + self.costs.collection(self.policy, learner.engine, learner.ranks)
        return seconds + (2 * size / device.pageable if self.run.transfer == "host" else size / device.broadcast)

    def loading(self) -> float:
        """An engine's part of a transfer through the node's memory."""
        device, parallel = self.costs.device, self.run.rollout.tensor_parallel_size
        return device.transfer_s + self._weight_bytes / parallel / device.pageable

    @property
    def _weight_bytes(self) -> float:
        lora, policy = self.run.sampled_adapter, self.policy
        return (policy.parameters if lora is None else policy.adapters(lora)) * self.costs.size(self.run.rollout.dtype)

    def moving(self, placed: PlacedActors, phase: str) -> float:
        """One actor's share of a phase on its way to the GPU, or from it; what is trained is in pinned memory."""
        memory = placed.phases[phase]
        device = self.costs.device
        pinned = memory.weights + memory.gradients + memory.optimizer if memory.optimizer else 0.0
        return pinned / (device.host_link * device.moving) + (memory.parked - pinned) / device.pageable
