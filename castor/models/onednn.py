"""Float32 products of linear layers through oneDNN in the place of MKL, on processors for which MKL has no kernels.

torch gives float32 products on x86 to MKL, which on processors of other makers than Intel keeps to kernels for older
ones. torch has no switch for that alone: its products go to oneDNN where it may round to bfloat16 on the way. oneDNN
does so with AMX only, which `exact` finds out. The switch is of the whole process, and thrown around the products of
layers alone: attention makes thousands of small ones, each of which oneDNN would prepare anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from castor.config.cluster import FLOAT32_PRODUCTS

log = logging.getLogger(__name__)
TOLERANCE = 1e-5  # of the norm of a product; bfloat16 is off by 2e-3, float32 by 1e-6
SHAPES = ((64, 256, 256), (512, 1024, 96), (7, 4096, 640))  # tokens, inputs, outputs
_CPUINFO = Path("/proc/cpuinfo")
_PRODUCTS = cast(Any, torch.backends.mkldnn).matmul  # torch has no types of it


def use_onednn(model: nn.Module) -> None:
    """Let the float32 linear layers of a model on a CPU compute through oneDNN, if that pays and is exact.

    CASTOR_FLOAT32_PRODUCTS in the environment decides otherwise: `torch` or `onednn` (which still has to be exact).
    Makers are told apart, and nothing is timed: a run that goes on computes as before, and so does every rank.
    Raises ValueError for any other word.
    """
    chosen = os.environ.get(FLOAT32_PRODUCTS, "auto")
    if chosen not in ("auto", "torch", "onednn"):
        raise ValueError(f"{FLOAT32_PRODUCTS} is {chosen!r}: it can be auto, torch or onednn")
    if chosen == "torch" or (chosen == "auto" and not _foreign()) or not exact():
        return
    for part in model.modules():
        if type(part) is nn.Linear:
            part.__class__ = OneDNNLinear


class OneDNNLinear(nn.Linear):
    """A linear layer whose float32 products, of the backward pass, too, are oneDNN's."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., outputs], as every `nn.Linear`. What is not float32, or sharded by ZeRO-3, goes torch's way."""
        if not (input.dtype == self.weight.dtype == torch.float32) or hasattr(self.weight, "ds_id"):
            return super().forward(input)
        made: Tensor = _Products.apply(input, self.weight, self.bias)
        return made


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        with _through_onednn():
            return nn.functional.linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        with _through_onednn():
            return (
                (rows @ weight).view(input.shape) if of_input else None,
                rows.T @ input.reshape(-1, input.shape[-1]) if of_weight else None,
                rows.sum(0) if of_bias else None,
            )


@cache
def exact() -> bool:
    """Whether oneDNN multiplies float32 matrices here without rounding them; found out by trying, against float64."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    made, errors = torch.Generator().manual_seed(0), list[float]()
    for tokens, inputs, outputs in SHAPES:
        left, right = (torch.randn(*shape, generator=made) for shape in ((tokens, inputs), (inputs, outputs)))
        wanted = left.double() @ right.double()
        with _through_onednn():
            found = left @ right
        errors.append(float((found - wanted).norm() / wanted.norm()))
    rounds = max(errors) > TOLERANCE
    log.info("oneDNN's float32 products are off by %.0e: %s", max(errors), "it rounds, not used" if rounds else "used")
    return not rounds


@contextmanager
def _through_onednn() -> Iterator[None]:
    # Products of another thread may go either way meanwhile; the same numbers to a millionth, as `exact` says.
    _PRODUCTS.fp32_precision = "bf16"
    try:
        yield
    finally:
        _PRODUCTS.fp32_precision = "none"


@cache
def _foreign() -> bool:
    """Whether this machine's processors are x86 of another maker than Intel."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # no Linux
        return False
    makers = {line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")}
    return bool(makers) and "GenuineIntel" not in makers
