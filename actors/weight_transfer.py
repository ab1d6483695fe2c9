"""From the learner to the engines: who gets the weights of a version how, and what is done about those that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ray.actor import ActorHandle

from actors.group import START_TIMEOUT_S, ActorFailure, ActorGroup, get
from actors.rollout_pool import RolloutPool
from castor.config.rlhf import RLHF
from engines.weights.base import TransferError, WeightUpdate
from engines.weights.collective import Invitation, dissolve


class Get(Protocol):
    """`actors.group.get`, or one that serves others while it waits."""

    def __call__(self, refs: Sequence[Any], timeout_s: float, what: str) -> Any: ...


@dataclass
class Circle:
    """The group of the learner's rank 0 and the vLLM workers of these engines."""

    members: list[ActorHandle]
    invitation: Invitation
    base: WeightUpdate | None  # what updates are sent over; without a digest: it is sent with the next one


class WeightTransfer:
    """Brings the weights of a learner to the engines of a pool.

    Through host memory the learner puts them aside, and engines take them when they come to it. With a collective
    transport it sends them to all that are at work, at once, and all have them at the end. An engine that died, or did
    not answer for transfer_timeout_s, is replaced; the others get the weights again, in another group. What comes up
    between two transfers gets them through host memory.
    """

    def __init__(
        self, config: RLHF, learner: ActorGroup, pool: RolloutPool, wake: Callable[[], None] = lambda: None
    ) -> None:
        """`wake` is called when the weights have been put aside: on shared GPUs it is then the engines' turn."""
        self.config, self.learner, self.pool, self.wake = config, learner, pool, wake
        self.timeout_s = config.learner.timeout_s
        self.circle: Circle | None = None
        pool.republish = None if config.transfer == "host" else lambda: self._put_aside(get)

    def publish(self, version: int, get: Get) -> None:
        """Send the learner's weights as `version`. Without staleness, every engine has proven them at the return."""
        if self.config.transfer != "host":
            self._broadcast(version, get)
            return
        update = self._put_aside(get, version)
        self.wake()
        if self.config.rollout.max_staleness:
            self.pool.send_weights(update)
        else:
            self.pool.load_weights(update)

    def _put_aside(self, get: Get, *version: int) -> WeightUpdate:
        """An update that every engine can take at any time; by default of the version that the learner has."""
        refs = self.learner.call("publish", *version)
        update: WeightUpdate = get(refs, self.timeout_s, "the learner (publishing weights)")[0]
        return update

    def _broadcast(self, version: int, get: Get) -> None:
        """Raises ActorFailure when engines are lost more often than they may be, or do not get the weights at all."""
        lost: str | None = None
        for _ in range(self.config.rollout.max_worker_restarts + 2):
            lost = self._send(version, get)
            if lost is None:
                return
            self.circle = None
        raise ActorFailure(f"the engines did not get version {version} of the weights: {lost}")

    def _send(self, version: int, get: Get) -> str | None:
        """One attempt. Returns why not everybody has proven the version; None: everybody has."""
        circle = self._circle(get)
        pieces = [asdict(circle.invitation)]
        announced = WeightUpdate(version, "", circle.invitation.transport, pieces, circle.base)
        refs = self.learner.call("publish", version, circle.invitation)
        self.pool.announce(announced, refs[0])
        self.pool.watch(refs, self.timeout_s, lambda: _dissolve(circle.invitation))
        sent: WeightUpdate = get(refs, self.timeout_s, "the learner (sending weights)")[0]
        missing = self.pool.settle(circle.invitation.timeout_s)
        circle.base = sent.base
        return sent.lost or missing

    def _circle(self, get: Get) -> Circle:
        """The group of all engines that are up; another one when these have changed."""
        members = self.pool.admit_ready()
        if self.circle is None or self.circle.members != members:
            rollout, transport = self.config.rollout, self.config.transfer
            workers = len(members) * rollout.tensor_parallel_size
            opening = self.learner.handles[0].invite.remote(transport, workers, rollout.transfer_timeout_s)
            (invitation,) = get([opening], START_TIMEOUT_S, "the learner (opening a group)")
            base = None
            if self.config.sampled_adapter is not None:
                base = WeightUpdate(0, "", transport, [asdict(invitation)])
            self.circle = Circle(members, invitation, base)
        return self.circle


def _dissolve(invitation: Invitation) -> None:
    with suppress(TransferError):  # its members have left it already
        dissolve(invitation, "an engine died")
