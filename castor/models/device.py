"""Where a model computes, and in which type."""

from __future__ import annotations

import torch


def resolve_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, name)


def device() -> torch.device:
    """The current GPU of this process, or the CPU. In an actor, `actors.device.take_device` has made it current."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
