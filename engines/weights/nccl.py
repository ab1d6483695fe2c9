"""Weights over NCCL, from GPU to GPU: `gloo` with another process group.

No CPU build of torch has these calls, so no test without a GPU runs them: `torch.cuda.current_device`,
`ProcessGroupNCCL` with its `Options`, `broadcast`, `get_error` and `abort`, and the work's `is_completed` and `wait`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist

from castor.io.errors import CastorError
from engines.weights import collective
from engines.weights.base import LOST, TransferError
from engines.weights.collective import POLL_S, Invitation


class Group(collective.Group):
    """One communicator. NCCL itself waits for ever: who is missing is found out before, and deadlines are ours."""

    def __init__(self, invitation: Invitation, store: Any, rank: int) -> None:
        if not (torch.cuda.is_available() and dist.is_nccl_available()):
            raise CastorError("rollout.transfer nccl needs a GPU in every process: use gloo or host")
        self.device = torch.device("cuda", torch.cuda.current_device())
        super().__init__(invitation, store, rank)

    def connect(self) -> Any:
        """See `collective.Group`. The communicator is made by the first broadcast, which everybody is there for."""
        nccl = cast(Any, dist).ProcessGroupNCCL
        self._meet()
        options = nccl.Options()
        options._timeout = self.timeout
        with _keeping_the_process():
            return nccl(self.store, self.rank, self.invitation.size, options)

    def _meet(self) -> None:
        everybody = [f"here/{rank}" for rank in range(self.invitation.size)]
        self.store.set(everybody[self.rank], "")
        self.wait(everybody)

    def finish(self, work: Any) -> None:
        """See `collective.Group`. The current stream goes on after the broadcast."""
        deadline = time.monotonic() + self.timeout.total_seconds()
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise TransferError(f"{LOST}: no answer for {self.timeout.total_seconds():g} s")
            time.sleep(POLL_S)
        error = self.backend.get_error()
        if error.name != "SUCCESS":
            raise TransferError(f"{LOST}: NCCL reports {error.name}")
        super().finish(work)


@contextmanager
def _keeping_the_process() -> Iterator[None]:
    """A group that is made in here is cleaned up when another process dies. torch would end this one as well."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "2"  # CleanUpOnly, read when a group is made
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Sender(collective.Sender):
    """See `collective.Sender`."""

    transport = "nccl"
    group_class = Group


class Receiver(collective.Receiver):
    """See `collective.Receiver`."""

    group_class = Group
