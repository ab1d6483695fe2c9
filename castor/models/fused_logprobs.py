"""Log-probabilities by Liger's fused kernels, where they are installed and proved to be right.

They make the logits of a few hundred tokens at a time, as `chunked_logprobs` does, and turn these into log-probs or
gradients in one pass, in place. They take no temperature, and give no entropy.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from castor.algorithms.logprobs import token_logprobs

LIGER = "liger_kernel.ops.fused_linear_cross_entropy"
LAMBDA = 8.0  # standard deviations that a correct result may be off

log = logging.getLogger(__name__)


def fused_logprobs(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """`token_logprobs(head(hidden), tokens)`: [K] float32 of hidden states [K, H] and tokens [K]; K is at least 1.

    The gradient of the head's weights is summed in float32.
    """
    kernel: Any = importlib.import_module(LIGER).LigerFusedLinearCrossEntropyFunction
    loss, *_ = kernel.apply(
        hidden.contiguous(), head.weight, tokens, head.bias, None, -100, 0.0, 0.0, "none", None, False, torch.float32
    )
    return -loss


def can_fuse(head: nn.Module) -> bool:
    """Can `fused_logprobs` be asked for this head? The first question of a process takes a few seconds."""
    return type(head) is nn.Linear and "forward" not in vars(head) and _proved(head.weight.device, head.weight.dtype)


@cache
def _proved(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels are there and give, for a small case, log-probabilities and gradients as float64 has them."""
    if not _runs_on(device):
        return False
    try:
        importlib.import_module(LIGER)
    except ImportError:
        return False
    try:
        with torch.enable_grad():
            wrong = _difference(device, dtype)
    except Exception as error:  # of whatever kind: a compiler, a driver, another version's arguments
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        log.warning("Liger's kernels are installed but not used: %s", wrong)
    return not wrong


def _runs_on(device: torch.device) -> bool:
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _difference(device: torch.device, dtype: torch.dtype) -> str:
    """What the kernels get wrong; nothing: they are right. Every token has a weight of its own in the loss."""
    maker = torch.Generator().manual_seed(0)
    count, width, size = 65, 32, 1037  # none of them the size of a block
    hidden, weight = torch.randn(count, width, generator=maker), torch.randn(size, width, generator=maker)
    tokens, factors = torch.randint(size, (count,), generator=maker), torch.randn(count, generator=maker)
    found = []
    for kind, place in ((torch.float64, torch.device("cpu")), (dtype, device)):
        head = nn.Linear(width, size, bias=False, device=place, dtype=kind)
        given = hidden.to(dtype).to(place, kind).requires_grad_()
        with torch.no_grad():
            head.weight.copy_(weight.to(dtype))
        if kind is dtype:
            logprobs = fused_logprobs(head, given, tokens.to(place))
        else:
            logprobs = token_logprobs(linear(given, head.weight), tokens)
        (logprobs * factors.to(place)).sum().backward()
        results: tuple[Any, ...] = (logprobs, given.grad, head.weight.grad)
        found.append([each.detach().cpu().double() for each in results])
    for name, exact, fused in zip(("log-probabilities", "gradients", "gradients of the head"), *found, strict=True):
        allowed = LAMBDA * (width + count) ** 0.5 * torch.finfo(dtype).eps * float(exact.abs().max())
        if not float((exact - fused).abs().max()) <= allowed:
            return f"{name} differ by up to {float((exact - fused).abs().max()):.2g} in a test"
    return ""
