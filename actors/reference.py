"""The reference policy: frozen, asked for the log-probabilities of sampled tokens."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from actors.device import take_device
from actors.occupant import Occupant, Part
from actors.processes import Watched
from actors.recording import recorded
from actors.startup import IMPORTS, Starting, during, phase
from actors.torch_trace import TorchTraced
from castor.config.rlhf import RLHF
from castor.experience import Experience
from castor.model_reference import ModelLike


@ray.remote
@recorded
class ReferenceWorker(Occupant, Watched, Starting, TorchTraced):
    """One replica of the reference policy."""

    def prepare(self) -> None:
        """Import, as all groups do side by side."""
        with phase(IMPORTS):
            import castor.models.policy  # noqa: F401

    @during("model")
    def load(self, model: ModelLike, config: RLHF) -> None:
        """Load the policy of a run."""
        import torch

        torch.set_num_threads(config.policy.reference.resources.threads)
        take_device()
        with phase(IMPORTS):
            from castor.models.attention import place
            from castor.models.device import device, resolve_dtype
            from castor.models.policy import PolicyModel

        engine, rollout = config.learner.engine, config.rollout
        self.name, self.engine, self.temperature, self.device = model, engine, rollout.temperature, device()
        policy = PolicyModel.load(model, resolve_dtype(engine.dtype), engine=engine, head_dtype=rollout.head_dtype)
        self.policy = place(policy.eval().requires_grad_(False), self.device)

    def move(self, part: Part | None) -> None:
        """The policy."""
        self.policy.to("cpu" if part is None else self.device)

    def logprobs(self, experience: Experience) -> NDArray[np.float32]:
        """[R] float32 log-probabilities of the response tokens, in the experience's order.

        Raises CastorError for one that is not finite.
        """
        from engines.batch import forward_by_budget

        self.require_on_gpu("policy")
        return forward_by_budget(
            experience,
            lambda micro: self.policy(micro.rows, micro.response_positions, self.temperature),
            lengths=experience.response_lengths,
            engine=self.engine,
            device=self.device,
            name=f"the reference policy {self.name}",
        )
