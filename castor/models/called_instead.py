"""Other work in the place of a module's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def called_instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While the body runs, a call of `module` is one of `forward`.

    Hooks on it, with which ZeRO-3 gathers its weights for the forward and the backward pass of a call, run as before.
    """
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own
