"""The parts of the check, in the order in which they run, and which packages each needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.vllm_arguments import ROLLOUT_ENV


@dataclass(frozen=True)
class Part:
    """A function that yields cases, each with its figures; it raises where two ways to one number disagree."""

    module: str
    function: str
    needs: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)  # of its environment

    def environment(self, device: str) -> dict[str, str]:
        """What its process is started with."""
        on_cpu = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        return self.variables | (on_cpu if device == "cpu" else {})


_TRAINING, _KERNELS = "benchmarks.gpu_check.training", "benchmarks.gpu_check.kernels"
_ROLLOUT = "benchmarks.gpu_check.rollout"

PARTS = {
    "digest": Part(_KERNELS, "digests"),
    "scores": Part(_KERNELS, "scores"),
    "log-probs": Part(_KERNELS, "logprobs"),
    "attention": Part(_KERNELS, "attention"),
    "torch": Part(_TRAINING, "torch_steps"),
    "DeepSpeed": Part(_TRAINING, "engine_steps", ("deepspeed",)),
    "offload": Part(_TRAINING, "offloading", ("deepspeed",)),
    "snapshot": Part(_TRAINING, "snapshots", ("deepspeed",)),
    "two ranks": Part("benchmarks.gpu_check.ranks", "two_ranks", ("deepspeed",)),
    "transfer": Part(_ROLLOUT, "transfer", ("vllm", "ray"), ROLLOUT_ENV),
    "in turns": Part(_ROLLOUT, "taking_turns", ("vllm", "deepspeed", "ray"), ROLLOUT_ENV),
    "PPO-Lag": Part("benchmarks.gpu_check.ppo_lag", "short_run", ("vllm", "deepspeed", "ray")),
}
