"""A weight update, the proof that it has arrived, and what a transport has to bring: a sender and a receiver.

A transport is a module of this package with a `Sender` and a `Receiver`; `WeightUpdate.transport` is its name. It
moves tensors and nothing else: versions, digests and vLLM's side of the update are the same for all.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from engines.weights.digest import Digest, Tensors, joined_digest

Proof = tuple[int, str]  # version, digest


@dataclass(frozen=True)
class WeightUpdate:
    """All weights of one policy version, announced: nothing here is large.

    With a `base` the update is an adapter over it: an engine loads the base once, and `digest` is that of both.
    """

    version: int
    digest: str
    transport: str
    pieces: list[Any]  # what the transport's receiver is told
    base: WeightUpdate | None = None
    lost: str | None = None  # why some engine has not got it, where the sender knows

    def check(self, proof: Proof) -> None:
        """Raise RuntimeError unless `proof` is of these very weights."""
        if proof != (self.version, self.digest):
            raise RuntimeError(
                f"a rollout worker holds version {proof[0]} with digest {proof[1]} after the transfer of version "
                f"{self.version} with digest {self.digest}: the weights did not arrive"
            )


LOST = "the weights did not get through"


class TransferError(RuntimeError):
    """`LOST`: another process has died, or did not answer in time. The message begins with it."""


class Sender(ABC):
    """The learner's half of a transport."""

    transport: str  # its name
    route: str = ""  # changes when what was sent before is not held any more by all to whom the next update goes

    def __init__(self, keep: bool) -> None:
        """All ranks of an SPMD group have one; the one of rank 0 is to `keep` what it is given, the others drop it."""
        self.keep = keep

    def send(self, tensors: Tensors, version: int, base: WeightUpdate | None = None) -> WeightUpdate | None:
        """Send weights as `version`; `base` holds the rest of them, if any. Returns the update where `keep` is set.

        Every rank iterates over `tensors`, as gathering shards is a collective. A tensor holds its values until the
        next one is asked for, on whatever device.
        """
        if not self.keep:
            for _ in tensors:
                pass
            return None
        digest = Digest()
        pieces = self.carry(digest.adding(tensors))
        return WeightUpdate(version, digest.over(base.digest if base else None), self.transport, pieces, base)

    @abstractmethod
    def carry(self, tensors: Tensors) -> list[Any]:
        """Take every tensor along; returns what the receiver has to be told."""


class Receiver(ABC):
    """An engine's half of a transport: `pieces` runs in the rollout worker, `receive` in each of vLLM's workers."""

    @abstractmethod
    def pieces(self, update: WeightUpdate, in_process: bool) -> Iterator[Any]:
        """What to hand to `receive`, one call a piece. A piece may be withdrawn when the next one is asked for.

        `in_process`: vLLM's worker is this process. Where it is not, a piece is text, numbers, and lists of them.
        """

    @abstractmethod
    def receive(self, piece: Any, load: Callable[[Tensors], None]) -> None:
        """Give the tensors of a piece to `load`, in any number of calls, in the order in which they were sent."""


def sender_class(transport: str) -> type[Sender]:
    """The sender of the transport of this name."""
    sender: type[Sender] = importlib.import_module(f"engines.weights.{transport}").Sender
    return sender


@cache
def receiver_of(transport: str) -> Receiver:
    """The receiver of the transport of this name, one a process."""
    receiver: Receiver = importlib.import_module(f"engines.weights.{transport}").Receiver()
    return receiver


class LoadedWeights:
    """What an engine has loaded: version and base. The base of an update is loaded only when it is not there yet."""

    def __init__(self, load: Callable[[WeightUpdate], str]) -> None:
        """`load` puts an update's own tensors into the engine and returns the digest of what it loaded."""
        self.load = load
        self.version = 0
        self.base: str | None = None  # digest of the base's tensors, while only updates over it have come after
        self.held = True  # whether the engine has any weights

    def take(self, update: WeightUpdate) -> Proof:
        """Bring the engine to `update`; returns the proof, which is the update's own if everything arrived."""
        base, self.base = self.base, None  # whatever fails below, the next update loads its base again
        if update.base is not None and base != update.base.digest:
            base = self.load(replace(update.base, version=self.version))  # no token is sampled from the base alone
        own = self.load(update)
        self.base = base if update.base is not None else None
        self.version, self.held = update.version, True
        return self.version, own if self.base is None else joined_digest(self.base, own)

    def lose(self) -> None:
        """The engine has given its weights up: the next update brings all of them."""
        self.base, self.held = None, False
