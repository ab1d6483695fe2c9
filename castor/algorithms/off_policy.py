"""Correction for tokens that another policy sampled: truncated importance sampling around a decoupled PPO loss.

Three policies are told apart (Hilton et al. 2021, Batch size-invariance for policy optimization, arXiv 2110.00641,
eq. 3): π_θ is being updated, the proximal policy π_prox holds the weights before the update, the behaviour policy
π_behav sampled the token. The clip keeps π_θ near π_prox, and π_prox / π_behav corrects for the age of the token, and
for what an engine with other kernels or another rounding makes of the same weights:

    loss = E_behav [ min(π_prox / π_behav, C) · max(-A ρ, -A clip(ρ)) ],  ρ = π_θ / π_prox

AReaL (Fu et al. 2025, arXiv 2505.24298, eq. 5) uses it with behaviour policies that differ from token to token; for
engines that compute differently, Yao et al. 2025 do (Your efficient RL framework secretly brings you off-policy RL
training). The weight is truncated at C, which bounds its variance for a bias (Ionides 2008, Truncated importance
sampling).
"""

from torch import Tensor

from castor.algorithms.ratio import bounded_exp


def importance_ratio(proximal_logprobs: Tensor, behaviour_logprobs: Tensor) -> Tensor:
    """π_prox / π_behav per token [R], without a gradient; `bounded_exp` of the log-ratio, so finite."""
    return bounded_exp(proximal_logprobs - behaviour_logprobs).detach()


def truncated_importance_weights(ratio: Tensor, cap: float) -> Tensor:
    """min(ratio, C) per token [R]."""
    return ratio.clamp(max=cap)
