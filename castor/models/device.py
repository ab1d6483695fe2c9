"""Where a model computes, and in which type."""

from __future__ import annotations

import torch


def resolve_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, name)


def device() -> torch.device:
    """The accelerator Ray gave this process, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
