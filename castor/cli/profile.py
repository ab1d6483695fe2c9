"""What `--profile` and `--profile-torch` ask of a run."""

from __future__ import annotations

from typing import Any


def ask_for_profile(pipeline: Any, timeline: bool, torch: str | None) -> None:
    """Have the stages of a `trainers.pipeline.Pipeline` recorded; `torch`: names with commas between them.

    Raises CastorError for a name that no stage has.
    """
    from castor.run.profile import check_traceable

    names = [name.strip() for name in (torch or "").split(",") if name.strip()]
    check_traceable(pipeline.plan.stages, names)
    pipeline.profiled, pipeline.traced = timeline or bool(names), frozenset(names)
