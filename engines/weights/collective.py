"""Weights by collectives: the learner's rank 0 broadcasts buckets to every vLLM worker of every engine at once.

`gloo`, `nccl` and `ipc` are the same but for the group (`Group`). They meet in a store that the sender opens on a free
port: whoever comes takes the next seat, so engines need not know of each other, nor how many workers each has. What a
bucket holds is written into the store, its bytes are broadcast; a receiver that has everything says so there, and the
sender does not end before all have. Who waits longer than `timeout_s` for another, or is told from outside that one has
died (`dissolve`), gives the group up, and it cannot be used again: the sender opens another one for those that live.

vLLM's own trainer side is not used: it would bring vLLM into the learner, and its communicators wait for ever.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from engines.weights import base
from engines.weights.base import LOST, TransferError, WeightUpdate
from engines.weights.buckets import Packer, unpack
from engines.weights.digest import Tensors

GONE = "gone"  # the key under which the store says that a member has died
TELL_S = 5.0  # to find a store that is there
POLL_S = 0.002  # between two looks into the store (a wait of its own that is too long fills the log)


@dataclass(frozen=True)
class Invitation:
    """Where a group meets. It is the one piece of its updates: text and numbers."""

    transport: str
    group: str  # no two have the same
    address: str
    port: int
    size: int  # the sender and all workers of all engines
    timeout_s: float


class Group(ABC):
    """One member's end of a group. Every wait ends after `timeout_s` with a TransferError."""

    device: torch.device  # where its buckets are

    def __init__(self, invitation: Invitation, store: Any, rank: int) -> None:
        """Meet the others, who have to come within the invitation's `timeout_s`. Rank 0 is the sender."""
        self.invitation, self.store, self.rank = invitation, store, rank
        self.timeout = timedelta(seconds=invitation.timeout_s)
        self.streams = 0  # that were sent or received before
        with wire():
            self.backend = self.connect()

    @abstractmethod
    def connect(self) -> Any:
        """A torch.distributed backend of these members, or what else `broadcast` and `finish` work with."""

    def broadcast(self, flat: Tensor) -> Any:
        """Send `flat` from rank 0, or receive into it; returns the work, for `finish`."""
        options = cast(Any, dist).BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        with wire():
            return self.backend.broadcast([flat], options)

    def finish(self, work: Any) -> None:
        """Wait for a broadcast: its tensor may then be read, or written to."""
        with wire():
            work.wait()

    def wait(self, keys: list[str]) -> None:
        """Until the store has all of these keys. Ends at once when it says that somebody is gone."""
        deadline = time.monotonic() + self.timeout.total_seconds()
        with wire():
            while not self.store.check(keys):
                if self.store.check([GONE]):
                    raise TransferError(f"{LOST}: {self.store.get(GONE).decode()}")
                if time.monotonic() > deadline:
                    raise TransferError(f"{LOST}: no answer for {self.timeout.total_seconds():g} s")
                time.sleep(POLL_S)

    def abort(self) -> None:
        """Leave: whoever waits for this member is told by the closed connections."""
        self.backend.abort()
        self.backend = self.store = None

    def bucket_key(self, number: int) -> str:
        """Where the store says what a bucket of the present stream holds."""
        return f"stream/{self.streams}/bucket/{number}"

    def thanks_key(self, rank: int) -> str:
        """Where the store says that a receiver has the present stream."""
        return f"stream/{self.streams}/thanks/{rank}"


@contextmanager
def wire() -> Iterator[None]:
    """What torch.distributed raises about the others, as a TransferError."""
    try:
        yield
    except TransferError:
        raise
    except RuntimeError as error:
        raise TransferError(f"{LOST}: {error}") from error


def dissolve(invitation: Invitation, why: str) -> None:
    """Tell the members of a group that one has died; raises TransferError when its store is gone, too."""
    wait, open_store = timedelta(seconds=TELL_S), cast(Any, dist).TCPStore
    with wire():
        open_store(invitation.address, invitation.port, is_master=False, timeout=wait).set(GONE, why)


class Sender(base.Sender):
    """Broadcasts buckets. An update's one piece is the invitation of the group it went to."""

    group_class: type[Group]

    def __init__(self, keep: bool, bucket_bytes: int | None = None) -> None:
        super().__init__(keep)
        self.bucket_bytes = bucket_bytes
        self.packer: Packer | None = None
        self.invitation: Invitation | None = None
        self.store: Any = None
        self.group: Group | None = None
        self.lost: str | None = None

    def invite(self, address: str, workers: int, timeout_s: float) -> Invitation:
        """Leave the group there may be, and open another for `workers` receivers. On rank 0."""
        self.close()
        wait, open_store = timedelta(seconds=timeout_s), cast(Any, dist).TCPStore
        self.store = open_store(address, 0, is_master=True, wait_for_workers=False, timeout=wait)
        return Invitation(self.transport, uuid.uuid4().hex, address, self.store.port, 1 + workers, timeout_s)

    def accept(self, invitation: Invitation) -> None:
        """Send to this group from now on. On all ranks."""
        if invitation != self.invitation:
            self.invitation, self.route, self.lost = invitation, invitation.group, None

    def send(self, tensors: Tensors, version: int, base: WeightUpdate | None = None) -> WeightUpdate | None:
        """See `base.Sender`. Where somebody did not get it the update says so, and its digest is right all the same."""
        update = super().send(tensors, version, base)
        return replace(update, lost=self.lost) if update is not None else None

    def carry(self, tensors: Tensors) -> list[Any]:
        """Gather a bucket while the one before is under way. A broken wire does not end the gathering: others take
        part in it.
        """
        assert self.invitation is not None
        tensors = iter(tensors)
        if self.lost is None:
            try:
                self._broadcast(tensors)
            except TransferError as error:
                self.lost = str(error)
                self.close()
        for _ in tensors:
            pass
        return [asdict(self.invitation)]

    def _broadcast(self, tensors: Tensors) -> None:
        assert self.invitation is not None
        if self.group is None:
            self.group = self.group_class(self.invitation, self.store, 0)
        if self.packer is None:
            self.packer = Packer(self.group.device, self.bucket_bytes)
        group, store = self.group, self.store
        works: list[Any] = []
        number = 0
        for number, (entries, flat) in enumerate(self.packer.pack(tensors), start=1):
            with wire():
                store.set(group.bucket_key(number - 1), json.dumps([len(flat), entries]))
            works.append(group.broadcast(flat))
            if len(works) == 2:  # the next bucket goes where the last but one is
                group.finish(works.pop(0))
        for work in works:
            group.finish(work)
        with wire():
            store.set(group.bucket_key(number), json.dumps(None))
            thanks = [group.thanks_key(rank) for rank in range(1, self.invitation.size)]
            group.wait(thanks)
            for key in [*(group.bucket_key(i) for i in range(number + 1)), *thanks]:
                store.delete_key(key)
        group.streams += 1

    def close(self) -> None:
        """Leave the group."""
        if self.group is not None:
            self.group.abort()
        self.group = self.store = None


class Receiver(base.Receiver):
    """Receives a bucket while the one before is loaded."""

    group_class: type[Group]

    def __init__(self) -> None:
        self.group: Group | None = None

    def pieces(self, update: WeightUpdate, in_process: bool) -> Iterator[Any]:
        """The invitation."""
        yield from update.pieces

    def receive(self, piece: Any, load: Callable[[Tensors], None]) -> None:
        """Load one stream of buckets, to its end."""
        invitation = Invitation(**piece)
        try:
            group = self._joined(invitation)
            for entries, flat in _buckets(group):
                load(unpack(entries, flat))
            with wire():
                group.store.set(group.thanks_key(group.rank), "")
            group.streams += 1
        except BaseException:
            self._leave()
            raise

    def _joined(self, invitation: Invitation) -> Group:
        if self.group is None or self.group.invitation != invitation:
            self._leave()
            wait, open_store = timedelta(seconds=invitation.timeout_s), cast(Any, dist).TCPStore
            with wire():
                store = open_store(invitation.address, invitation.port, is_master=False, timeout=wait)
                seat = store.add("seat", 1)
            self.group = self.group_class(invitation, store, seat)
        return self.group

    def _leave(self) -> None:
        if self.group is not None:
            self.group.abort()
        self.group = None


def _buckets(group: Group) -> Iterator[tuple[Any, Tensor]]:
    """The buckets of one stream; each is a memory of its own, as vLLM keeps tensors until their layer is whole."""
    under_way: tuple[Any, Tensor, Any] | None = None
    number = 0
    while True:
        with wire():
            told = json.loads(group.store.get(group.bucket_key(number)))
        arriving = None
        if told is not None:
            size, entries = told
            flat = torch.empty(size, dtype=torch.uint8, device=group.device)
            arriving = (entries, flat, group.broadcast(flat))
        if under_way is not None:
            entries, flat, work = under_way
            group.finish(work)
            yield entries, flat
        if arriving is None:
            return
        under_way, number = arriving, number + 1
