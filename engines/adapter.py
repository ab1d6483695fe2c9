"""The adapter of a LoRA policy: on its way to the engines, switched off as the reference, and on disk.

The model it is for travels once, as the base that every update refers to; an update holds the adapter and nothing else.
On disk the policy is merged, W + alpha / rank · B A, layer by layer, so that no second copy of the model is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from castor.config.training import LoRA
from castor.experience import Experience
from castor.models.lora import (
    adapter_folder,
    adapter_weights,
    add_adapters,
    base_name,
    inner_model,
    is_factor,
    merge,
    save_adapter,
    without_adapters,
)
from castor.models.policy import PolicyModel
from engines.batch import MicroBatch, forward_by_budget, forward_shared
from engines.deepspeed_engine import TrainEngine
from engines.weights.base import Sender, WeightUpdate


class Adapter:
    """One rank's view of the adapter inside a policy. Methods are collective unless they say otherwise."""

    def __init__(self, policy: PolicyModel, config: LoRA, rank: int, world_size: int) -> None:
        """Put the adapter into `policy`, in place; its random start comes from torch's global generator."""
        add_adapters(policy, config)
        self.policy, self.config, self.rank, self.world_size = policy, config, rank, world_size
        self.prefix = f"{inner_model(policy)[0]}."
        self.bases: dict[str, WeightUpdate | None] = {}  # by the route they were sent on

    def publish(self, engine: TrainEngine, sender: Sender, version: int) -> WeightUpdate | None:
        """Send the adapter as `version`; the model it is for is sent once on each of its routes."""
        if sender.route not in self.bases:
            self.bases[sender.route] = sender.send(self._base(engine), 0)
        adapter = adapter_weights(self.policy, engine.whole_tensors(is_factor))
        return sender.send(adapter, version, self.bases[sender.route])

    def merged(self, engine: TrainEngine) -> Iterator[tuple[str, Tensor]]:
        """The weights, merged, under their Hugging Face names, on the device.

        Rank 0 gets them one at a time, the others none. Each holds its values until the next one is asked for.
        """
        factors = self._factors(engine)
        tensors = engine.whole_tensors(lambda name: not is_factor(name))
        if self.rank != 0:
            for _ in tensors:  # gathering shards is a collective
                pass
            return
        for name, tensor in merge(self.policy, tensors, factors):
            yield name.removeprefix(self.prefix), tensor

    def _base(self, engine: TrainEngine) -> Iterator[tuple[str, Tensor]]:
        """The weights without the adapter, in the same way."""
        for name, tensor in engine.whole_tensors(lambda name: not is_factor(name)):
            yield base_name(name).removeprefix(self.prefix), tensor

    def reference_logprobs(
        self, engine: TrainEngine, experience: Experience, temperature: float
    ) -> NDArray[np.float32] | None:
        """[R] float32 log-probabilities of the response tokens without the adapter.

        Up to ZeRO-2 each rank answers by itself. Under ZeRO-3 a forward pass is a collective: all ranks are asked,
        work on a share each, and rank 0 answers. Raises CastorError when one is not finite.
        """

        def forward(micro: MicroBatch) -> Tensor:
            return engine.infer(micro.rows, micro.response_positions, temperature)

        options, device = engine.config, engine.device
        with without_adapters(self.policy):
            if options.zero_stage < 3:
                lengths = experience.response_lengths
                return forward_by_budget(experience, forward, lengths=lengths, engine=options, device=device)
            logprobs = forward_shared(
                experience, forward, engine=options, device=device, rank=self.rank, world_size=self.world_size
            )
        return logprobs if self.rank == 0 else None

    def save(self, engine: TrainEngine, policy: Path, base: str) -> None:
        """Write the adapter in peft's format beside the folder `policy`, whole or not at all; `base` is noted in it."""
        factors = {name: tensor.cpu() for name, tensor in self._factors(engine).items()}
        if self.rank == 0:
            save_adapter(adapter_folder(policy), self.policy, factors, self.config, base)

    def _factors(self, engine: TrainEngine) -> dict[str, Tensor]:
        """A and B of every adapted layer in full, on the device: a few per cent of the model."""
        return {name: tensor.clone() for name, tensor in engine.whole_tensors(is_factor)}
