"""Turns on GPUs that all groups of a run share (`colocate`): at any time one phase of a step holds them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from actors.group import ActorGroup, get
from actors.occupant import Part

if TYPE_CHECKING:
    from trainers.rlhf.groups import Groups

Phase = Literal["rollout", "judging", "critics", "learner"]


class Turns:
    """Whose turn it is. Where every group has GPUs of its own, nothing ever moves.

    What a phase holds has left the GPUs before anything of the next one comes, so their peak is that of one phase.
    Actors serve their calls in order: a group leaves when it has done all that it was given.
    """

    def __init__(self, groups: Groups) -> None:
        """The engines hold the GPUs, everything else is in the nodes' memory."""
        self.groups, self.shared = groups, groups.config.colocate
        self.phase: Phase = "rollout"
        self.seconds = 0.0

    def to(self, phase: Phase) -> None:
        """Give the GPUs to `phase`. Raises ActorFailure when a group does not leave them, or come, in time."""
        if not self.shared or phase == self.phase:
            return
        begin = time.perf_counter()
        if self.phase == "rollout":
            self.groups.rollout.sleep(keep_weights=self.groups.config.sampled_adapter is not None)
        else:
            self._occupy((group, None) for group, _ in self._holders(self.phase))
        if phase == "rollout":
            self.groups.rollout.wake()
        else:
            self._occupy(self._holders(phase))
        self.phase = phase
        self.seconds += time.perf_counter() - begin

    def back(self, groups: Iterable[ActorGroup]) -> None:
        """Back to the beginning, whatever the phase: the engines awake, and of `groups` nothing on the GPUs.

        The engines may have no weights until the next update.
        """
        if not self.shared:
            return
        self._occupy((group, None) for group in groups)
        if self.phase != "rollout":
            self.groups.rollout.wake()
        self.phase = "rollout"

    def metrics(self) -> dict[str, float]:
        """switch_s: seconds of all changes since the last call, where GPUs are shared."""
        seconds, self.seconds = self.seconds, 0.0
        return {"switch_s": seconds} if self.shared else {}

    def _holders(self, phase: Phase) -> Iterable[tuple[ActorGroup, Part]]:
        """The groups that work in a phase, with the part of each that works."""
        groups = self.groups
        if phase == "judging":
            yield groups.reference or groups.learner, "policy"
            for group in groups.signals.values():
                yield group, "judge"
        elif phase == "critics":
            for name, group in groups.signals.items():
                if groups.config.has_critic(name):
                    yield group, "critic"
        elif phase == "learner":
            yield groups.learner, "policy"

    def _occupy(self, parts: Iterable[tuple[ActorGroup, Part | None]]) -> None:
        """Let groups move a part of them onto the GPUs, or (None) all of them away, side by side; wait for it."""
        moving = [(group, group.call("occupy", part)) for group, part in parts]
        for group, refs in moving:
            get(refs, self.groups.config.learner.timeout_s, f"{group.name} (taking turns on the GPUs)")
