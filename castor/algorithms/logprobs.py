"""Log-probabilities and entropies from logits: of all tokens at once, or a chunk at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0, with_entropy: bool = False) -> Tensor:
    """Log-probability of each of `tokens` [K] under its logits [K, V], divided by the temperature.

    Returns [K] in float32, or float64 where the logits are; with entropy [2, K], log-probabilities first, entropies of
    the whole distributions, in nats, second.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    distribution = torch.log_softmax(exact if temperature == 1.0 else exact / temperature, -1)
    result = distribution.gather(-1, tokens[:, None]).squeeze(-1)
    if with_entropy:
        result = torch.stack([result, -(distribution.exp() * distribution).sum(-1)])
    return result


def chunked_logprobs(
    project: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    *,
    chunk: int,
) -> Tensor:
    """`token_logprobs(project(hidden), tokens, ...)` without ever holding the logits of more than `chunk` tokens.

    The backward pass computes the logits of a chunk once more: the price is one more projection of every token.

    Args:
        project: hidden states [n, H] to logits [n, V]; whatever it has learned gets its gradient.
        hidden: [K, H], K at least 1.
        tokens: [K] int64.
        temperature: see `token_logprobs`.
        with_entropy: see `token_logprobs`.
        chunk: tokens, at least 1.

    """

    def part(hidden: Tensor, tokens: Tensor) -> Tensor:
        return token_logprobs(project(hidden), tokens, temperature, with_entropy)

    pieces = zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    return torch.cat([checkpoint(part, *piece, use_reentrant=False) for piece in pieces], -1)
