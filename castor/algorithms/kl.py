"""The KL term as a loss. As a reward penalty it is in `penalized_stream`."""

from torch import Tensor

from castor.algorithms.ratio import bounded_exp


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-k) + k - 1 with k = log π - log π_ref, per token [R]: non-negative, and of mean KL(π | π_ref) on samples
    of π (Schulman 2020, Approximating KL divergence; GRPO eq. 4). The exponential is `bounded_exp`.
    """
    log_ratio = logprobs - reference_logprobs
    return bounded_exp(-log_ratio) + log_ratio - 1.0
