"""What `--profile` records of a run, and where. It changes no result, so no fingerprint knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from castor.io.errors import CastorError

if TYPE_CHECKING:  # every actor imports this module
    from castor.run.stages.stage import Stage

FOLDER, ACTOR = "CASTOR_PROFILE", "CASTOR_PROFILE_ACTOR"  # environment of an actor that is recorded
TRACED_STEPS = range(2, 4)  # of which torch traces are made: the first step pays for what later ones do not


@dataclass(frozen=True)
class Profile:
    """Of one stage: `folder` takes a file a process, and the traces of the actors, or of the stage, in `torch`."""

    folder: Path
    torch: frozenset[str] = frozenset()

    def env(self, actor: str) -> dict[str, str]:
        """Environment of the actor of that name."""
        return {FOLDER: str(self.folder), ACTOR: actor}

    @property
    def timeline(self) -> Path:
        """What the files of all processes are put together in."""
        return self.folder / "timeline.json"

    def trace(self, actor: str) -> Path:
        """The torch trace of one actor."""
        return self.folder / f"{actor}.torch.json.gz"


def traceable(stage: Stage) -> list[str]:
    """Names that `--profile-torch` takes for a stage: of its actors, or its own where all of them are alike.

    vLLM computes in processes and threads of its own, so rollout workers are not among them.
    """
    from castor.run.actors import Trained

    actors = [
        each for each in stage.actors() if each.name.startswith("signal-") or each.name in ("learner", "reference")
    ]
    if actors:
        return [each.name for each in actors]
    return [stage.name] if any(isinstance(held, Trained) for each in stage.actors() for held in each.holds) else []


def check_traceable(stages: Mapping[str, Stage], wanted: Iterable[str]) -> None:
    """Raise CastorError for a name that no stage of the run has."""
    known = list(dict.fromkeys(name for stage in stages.values() for name in traceable(stage)))
    for name in wanted:
        if name not in known:
            raise CastorError(
                f"--profile-torch {name}: no stage of this run has that; it can trace {', '.join(known) or 'nothing'}"
            )
