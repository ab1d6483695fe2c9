"""Seconds of what the parts of a step do: FLOPs and bytes over the rates of a device (formulas: docs/scale.md)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from castor.config.training import Engine, LoRA
from castor.dealing import BUNDLES, WORTH
from castor.dry_run.memory import bytes_per_number
from castor.dry_run.shapes import Shape
from castor.planner.device import Device

UPDATE_BYTES = 32  # a parameter that AdamW reads and writes: weights twice, two moments, float32 weights, gradients
HOST_UPDATE_BYTES = 28  # ... on the host, from and to which go another 6
HOST_MOVED_BYTES = 6


@dataclass(frozen=True)
class Tokens:
    """Sequences of a forward pass."""

    total: float  # prompts and responses
    responses: float  # those of the responses alone: a policy makes logits for them
    context: float  # of one sequence, in the mean
    samples: float = 1.0  # responses among them to each prompt, in the mean

    def part(self, share: float) -> Tokens:
        """A share of the sequences, with responses to fewer prompts."""
        return replace(self, total=self.total * share, responses=self.responses * share)

    def computed(self, room: float) -> Tokens:
        """What a model computes of them where responses to one prompt go together in at most `room` tokens: the prompt
        once, if that is worth while (`castor.dealing`).
        """
        together = max(1.0, min(self.samples, room // self.context))
        shared = (1 - 1 / together) * (self.total - self.responses)
        return self if shared < WORTH * self.total else replace(self, total=self.total - shared)


def forward_flops(shape: Shape, tokens: Tokens, *, score: bool) -> tuple[float, float]:
    """FLOPs of a forward pass: of the layers with their (causal) attention, and of the vocabulary head."""
    matrices = shape.backbone - shape.embedding
    attention = 2 * shape.layers * shape.heads * shape.head_size * tokens.context
    head = 0.0 if score else 2.0 * shape.embedding * tokens.responses
    return (2 * matrices + attention) * tokens.total, head


@dataclass(frozen=True)
class Costs:
    """Seconds on one kind of device. `threads` is how many of it an actor takes: of a CPU."""

    device: Device
    gpus_per_node: int
    on_gpu: bool = True

    def _flops(self, share: float, threads: int) -> float:
        return self.device.flops * share * (1 if self.on_gpu else threads)

    def size(self, dtype: str) -> int:
        """Bytes of a number."""
        return bytes_per_number(dtype, self.on_gpu)

    def group_rate(self, ranks: int) -> float:
        """Bytes/s at which all ranks of a group get what is spread over them; several nodes share their networks."""
        rate = self.device.link
        if ranks > self.gpus_per_node:
            rate = min(rate, self.device.network * self.gpus_per_node)
        return rate * self.device.moving

    def forward(
        self,
        shape: Shape,
        engine: Engine,
        tokens: Tokens,
        *,
        score: bool,
        threads: int = 1,
        room: float | None = None,
    ) -> float:
        """One rank that holds the whole model, on these tokens. `room`: as of `Tokens.computed`."""
        computed = tokens.computed(engine.micro_batch_tokens if room is None else room)
        flops = sum(forward_flops(shape, computed, score=score))
        return flops / self._flops(self.device.forward, threads) + self._passes(tokens, engine) * self.device.pass_s

    def shared_forward(
        self, shape: Shape, engine: Engine, ranks: int, tokens: Tokens, *, score: bool, threads: int = 1
    ) -> float:
        """All ranks of a training group, each on its share of these tokens."""
        mine = tokens.part(1 / ranks)
        return max(
            self.forward(shape, engine, mine, score=score, threads=threads, room=_bundle(tokens, engine, ranks)),
            self._passes(mine, engine) * self._gather(shape, engine, ranks),
        )

    def training(
        self,
        shape: Shape,
        engine: Engine,
        ranks: int,
        tokens: Tokens,
        *,
        score: bool,
        lora: LoRA | None = None,
        threads: int = 1,
    ) -> float:
        """Forward and backward passes of all ranks, each on its share of these tokens, without the optimiser.

        A backward pass costs twice a forward one, once where only adapters have gradients, and nothing in layers below
        those that are trained; checkpointed layers, and logits in chunks, are computed once more. What ZeRO sends
        meanwhile takes its time only where it is longer.
        """
        mine = tokens.part(1 / ranks)
        layers, head = forward_flops(shape, mine.computed(_bundle(tokens, engine, ranks)), score=score)
        backward = 2 if lora is None else 1
        behind = backward if engine.trained_layers is None else 1  # a vocabulary's head is frozen then
        chunked = engine.micro_batch_tokens > engine.chunk_tokens(shape.vocabulary)
        trained = shape.trained_layers(engine) / shape.layers
        flops = layers * (1 + trained * (backward + engine.gradient_checkpointing)) + head * (1 + behind + chunked)
        micro = self._passes(mine, engine)
        computed = flops / self._flops(self.device.training, threads) + micro * self.device.pass_s
        sent = micro * 2 * self._gather(shape, engine, ranks)  # before the forward and the backward pass
        if engine.zero_stage >= 2:
            sent += micro * self._reduce(shape, engine, ranks, score=score, lora=lora)
        return max(computed, sent)

    def update(self, shape: Shape, engine: Engine, ranks: int, *, score: bool, lora: LoRA | None = None) -> float:
        """One step of the optimiser, and what ZeRO sends for it alone."""
        trained, size = shape.trained(engine, score=score, lora=lora), self.size(engine.dtype)
        mine = trained / ranks if engine.zero_stage else trained
        if engine.offload.optimizer == "cpu":
            seconds = mine * HOST_UPDATE_BYTES / self.device.host_bandwidth
            seconds += mine * HOST_MOVED_BYTES / (self.device.host_link * self.device.moving)
        else:
            seconds = mine * UPDATE_BYTES / (self.device.bandwidth * self.device.reading)
        if ranks > 1 and engine.zero_stage < 2:
            seconds += (2 - engine.zero_stage) * self._reduce(shape, engine, ranks, score=score, lora=lora)
        if ranks > 1 and engine.zero_stage in (1, 2):
            seconds += trained * size / self.group_rate(ranks)
        return seconds

    def collection(self, shape: Shape, engine: Engine, ranks: int) -> float:
        """Gathering all weights once, to send them."""
        return self._gather(shape, engine, ranks)

    def _passes(self, tokens: Tokens, engine: Engine) -> int:
        """Micro-batches; a sequence is never cut, so they are not quite full."""
        room = max(engine.micro_batch_tokens - tokens.context / 2, tokens.context)
        return max(1, math.ceil(tokens.total / room))

    def _gather(self, shape: Shape, engine: Engine, ranks: int) -> float:
        if engine.zero_stage < 3 or ranks == 1:
            return 0.0
        return shape.parameters * self.size(engine.dtype) * (1 - 1 / ranks) / self.group_rate(ranks)

    def _reduce(self, shape: Shape, engine: Engine, ranks: int, *, score: bool, lora: LoRA | None) -> float:
        if ranks == 1:
            return 0.0
        sent = shape.trained(engine, score=score, lora=lora) * self.size(engine.dtype)
        return sent * (1 - 1 / ranks) / self.group_rate(ranks)


def _bundle(tokens: Tokens, engine: Engine, ranks: int) -> float:
    """Tokens of responses to one prompt that `castor.dealing.deal` keeps together, at most."""
    return min(engine.micro_batch_tokens / 2, tokens.total / (ranks * BUNDLES))


@dataclass(frozen=True)
class Decoder:
    """One vLLM engine. Each token takes its layers and its head, which has as many weights as the embedding."""

    costs: Costs
    shape: Shape
    weight: int  # bytes
    parallel: int  # GPUs
    slots: int  # responses at a time
    threads: int = 1

    def iteration(self, responses: int, cached: float) -> float:
        """Seconds of the next token of `responses` under way, with `cached` tokens in their key-value caches."""
        device = self.costs.device
        weights = self.shape.backbone * self.weight / self.parallel
        cache = cached * self.shape.kv_cache(self.weight, self.parallel)
        read = (weights + cache) / (device.bandwidth * device.reading)
        seconds = device.iteration_s + responses * device.sequence_s + max(read, self._compute(responses))
        return seconds + (2 * self.shape.layers * device.reduction_s if self.parallel > 1 else 0.0)

    def prefill(self, tokens: float) -> float:
        """Seconds of prompts with so many tokens."""
        return self._compute(tokens)

    def _compute(self, tokens: float) -> float:
        flops = 2 * self.shape.backbone * tokens / self.parallel
        return flops / self.costs._flops(self.costs.device.prefill, self.threads)

    def finished(self, prompt: float, lengths: Sequence[int]) -> list[tuple[float, int]]:
        """When each response is finished, in that order: seconds from the beginning, and its index.

        Continuous batching: a response that ends makes room for the next one in the queue.
        """
        ends: list[tuple[int, int]] = []  # of those under way, by iteration
        result: list[tuple[float, int]] = []
        now, iteration, cached, next_one = 0.0, 0, 0.0, 0
        while ends or next_one < len(lengths):
            admitted = min(self.slots - len(ends), len(lengths) - next_one)
            if admitted:
                now += self.prefill(admitted * prompt)
                cached += admitted * prompt
                for index in range(next_one, next_one + admitted):
                    heapq.heappush(ends, (iteration + lengths[index], index))
                next_one += admitted
            tokens, under_way = ends[0][0] - iteration, len(ends)
            now += tokens * self.iteration(under_way, cached + under_way * tokens / 2)
            iteration, cached = ends[0][0], cached + under_way * tokens
            while ends and ends[0][0] == iteration:
                _, index = heapq.heappop(ends)
                cached -= prompt + lengths[index]
                result.append((now, index))
        return result
