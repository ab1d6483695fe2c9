"""How far two correct computations of one number may lie apart: no processor has to add in the order of another.

Two computations of a sum of n numbers, each in any order, differ by at most 2 λ √n u Σ|x|, u the unit roundoff, except
with a probability of about 4 n exp(-λ² / 2) (Higham and Mary 2019, A new approach to probabilistic rounding error
analysis, SIAM J. Sci. Comput. 41(5)); with λ = 8 that is 8 √n ε Σ|x|, ε = 2u, and never. The largest result of a tensor
stands for Σ|x|: elements in which much cancels have the absolute error of their neighbours, not a relative one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

LAMBDA = 8.0
TINY_MODELS = 1_500
"""Summands on the way from a token to an output of the `tiny_models`: in each of two layers four sums over 64 channels,
two over 96 or 64 in the MLP, norms, and the attention over up to 160 tokens; then the softmax over the vocabulary.
"""


def tolerance(expected: Any, summands: int, dtype: torch.dtype = torch.float32) -> float:
    """Absolute tolerance of results around `expected`, a number or an array of any shape.

    Args:
        expected: its largest absolute value is the scale.
        summands: numbers that are summed on the way to one result, in the longest chain.
        dtype: the coarsest one that either computation uses.

    """
    return float(LAMBDA * summands**0.5 * torch.finfo(dtype).eps * float(as_double(expected).abs().max()))


def assert_close(actual: Any, expected: Any, summands: int, dtype: torch.dtype = torch.float32) -> None:
    """Assert that two arrays of one shape differ by rounding only, see `tolerance`."""
    torch.testing.assert_close(
        as_double(actual), as_double(expected), rtol=0.0, atol=tolerance(expected, summands, dtype)
    )


def as_double(values: Any) -> Tensor:
    """A tensor, an array or a number as a float64 tensor on the CPU."""
    return values.detach().cpu().double() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, float))
