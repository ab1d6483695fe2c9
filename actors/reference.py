"""The reference policy: frozen, asked for the log-probabilities of sampled tokens."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from castor.config.training import Engine
from castor.experience import Experience
from castor.model_reference import ModelLike


@ray.remote
class ReferenceWorker:
    """One replica of the reference policy."""

    def __init__(self, model: ModelLike, engine: Engine, temperature: float, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        from castor.models.attention import place
        from castor.models.device import device, resolve_dtype
        from castor.models.policy import PolicyModel

        self.name, self.engine, self.temperature, self.device = model, engine, temperature, device()
        policy = PolicyModel.load(model, resolve_dtype(engine.dtype), engine=engine)
        self.policy = place(policy.eval().requires_grad_(False), self.device)

    def ready(self) -> None:
        """Answers once the model is loaded."""

    def logprobs(self, experience: Experience) -> NDArray[np.float32]:
        """[R] float32 log-probabilities of the response tokens, in the experience's order.

        Raises CastorError for one that is not finite.
        """
        from engines.batch import forward_by_budget

        return forward_by_budget(
            experience,
            lambda micro: self.policy(micro.rows, micro.response_positions, self.temperature),
            lengths=experience.response_lengths,
            engine=self.engine,
            device=self.device,
            name=f"the reference policy {self.name}",
        )
