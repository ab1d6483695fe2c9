"""Torch traces of an RLHF run's actors, for the steps after the first."""

from __future__ import annotations

from actors.group import get
from castor.run.profile import TRACED_STEPS
from trainers.rlhf.groups import Groups


def trace(groups: Groups, number: int, last: bool = False) -> None:
    """Begin or end what the profile asks for, before step `number` of this loop, or after its last one.

    Actors serve calls in order, so what they were given before a trace begins is not in it.
    """
    profile = groups.reservation.profile
    begins, ends = number == TRACED_STEPS.start and not last, number == TRACED_STEPS.stop or last
    if profile is None or not (begins or ends):
        return
    for name in profile.torch & groups.parts.keys():
        group, files = groups.group(name), [profile.trace(each) for each in groups.parts[name].actors.rank_names]
        refs = (
            group.call("begin_trace")
            if begins
            else [rank.end_trace.remote(file) for rank, file in zip(group.handles, files, strict=False)]
        )
        get(refs, groups.config.learner.timeout_s, f"{group.name} (its torch trace)")
