"""Weights within one GPU that the learner's rank 0 and the engines share: a bucket is opened where it lies, and copied.

Without a GPU buckets are in shared memory of a node, and all but the kind of handle is the same.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from castor.io.errors import CastorError
from engines.weights import collective
from engines.weights.collective import Invitation, wire


class Group(collective.Group):
    """Members that open each other's memory. A bucket has arrived when every receiver has a copy of it."""

    def __init__(self, invitation: Invitation, store: Any, rank: int) -> None:
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self.sent = 0  # buckets so far
        super().__init__(invitation, store, rank)

    def connect(self) -> None:
        """Raises CastorError when the members cannot open each other's memory."""
        places = [f"place/{rank}" for rank in range(self.invitation.size)]
        self.store.set(places[self.rank], self._place())
        self.wait(places)
        found = sorted({self.store.get(place).decode() for place in places})
        if len(found) > 1:
            raise CastorError(
                f"rollout.transfer ipc needs the learner's rank 0 and all engines on one GPU (without GPUs, on one "
                f"node), and they are on {' and '.join(found)}: take transfer host or nccl"
            )

    def _place(self) -> str:
        if self.device.type == "cpu":
            return f"node {socket.gethostname()}"
        return f"GPU {torch.cuda.get_device_properties(self.device).uuid}, there number {self.device.index}"

    def broadcast(self, flat: Tensor) -> int:
        """See `collective.Group`. A receiver has its copy at the return."""
        number, self.sent = self.sent, self.sent + 1
        if self.rank:
            with wire():
                handle = self.store.get(self._handle_key(number, self.rank))
                flat.copy_(pickle.loads(handle))
                self._synchronize()
                self.store.set(self._copied_key(number, self.rank), "")
            return number
        self._synchronize()
        with _files():
            for rank in range(1, self.invitation.size):  # a handle is counted as open until its one receiver closes it
                self.store.set(self._handle_key(number, rank), bytes(ForkingPickler.dumps(flat)))
        return number

    def finish(self, work: int) -> None:
        """See `collective.Group`."""
        if self.rank:
            return
        ranks = range(1, self.invitation.size)
        self.wait([self._copied_key(work, rank) for rank in ranks])
        with wire():
            for rank in ranks:
                self.store.delete_key(self._handle_key(work, rank))
                self.store.delete_key(self._copied_key(work, rank))

    def abort(self) -> None:
        """See `collective.Group`: the store of rank 0 closes, and whoever waits for it is told."""
        self.store = None

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    @staticmethod
    def _handle_key(number: int, rank: int) -> str:
        return f"handle/{number}/{rank}"

    @staticmethod
    def _copied_key(number: int, rank: int) -> str:
        return f"copied/{number}/{rank}"


@contextmanager
def _files() -> Iterator[None]:
    """Memory of a CPU is shared by the name of a file: torch's default hands a descriptor from parent to child."""
    before = mp.get_sharing_strategy()
    mp.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        mp.set_sharing_strategy(before)


class Sender(collective.Sender):
    """See `collective.Sender`."""

    transport = "ipc"
    group_class = Group


class Receiver(collective.Receiver):
    """See `collective.Receiver`."""

    group_class = Group
