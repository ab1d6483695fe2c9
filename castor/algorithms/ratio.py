"""The ratio of two policies' probabilities of a token, finite however far the policies are apart.

float32 ends at exp(88.7). A single token beyond it would make the loss infinite or its gradient NaN (0 · inf) and stop
the run, so above `MAX_LOG_RATIO` the exponential is continued by its tangent.
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 4.9e8, so that squares of gradients stay far within float32; verl bounds log-ratios at the same number."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp(x) up to x = `MAX_LOG_RATIO`, above it the tangent there: exp(20) (x - 19). Any shape, that of the input.

    Value and gradient are finite for every finite x, and the gradient keeps its sign, so that a token beyond the bound
    is still pulled back. Up to the bound both are those of `torch.exp`, bit for bit.
    """
    exponential = torch.exp(log_ratio.clamp(max=MAX_LOG_RATIO))
    tangent = exponential * (1.0 + (log_ratio - MAX_LOG_RATIO))
    return torch.where(log_ratio > MAX_LOG_RATIO, tangent, exponential)


def is_bounded(log_ratio: Tensor) -> Tensor:
    """Whether `bounded_exp` differs from the exponential; bool, in the input's shape."""
    return log_ratio > MAX_LOG_RATIO
