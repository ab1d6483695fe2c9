"""What decides the result of a stage, and whether what it left when it was cut short may be gone on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from castor.io.errors import CastorError
from castor.io.files import fingerprint, read_json, write_json
from castor.run.files import TrainingFiles

SHOWN = 12  # changes named in a message


@dataclass(frozen=True)
class Inputs:
    """What decides the result of a stage, as JSON values."""

    recipe: Mapping[str, Any]  # its section's, and what all stages of the config share
    data: Mapping[str, Any]  # the state of files and folders it reads, by their names
    stages: Mapping[str, str]  # the keys of the stages it reads

    @cached_property
    def key(self) -> str:
        """The fingerprint."""
        return fingerprint(asdict(self))

    def changes(self, before: Mapping[str, Any]) -> Iterator[str]:
        """How these differ from others that were read from a file, one phrase each."""
        now = json.loads(json.dumps(asdict(self)))
        yield from _changes(before["recipe"], now["recipe"])
        yield from (f"{name} is another" for name in _different(before["data"], now["data"]))
        yield from (f"stage:{name} was made another way" for name in _different(before["stages"], now["stages"]))


@dataclass(frozen=True)
class Claim:
    """A stage's claim to the folder in which it keeps its state until it is finished."""

    stage: str
    inputs: Inputs
    fresh: bool = False  # start over
    accept_changes: bool = False  # go on although inputs have changed

    def make(self, files: TrainingFiles) -> None:
        """Make the folder this stage's.

        What lies there is removed if it is to start over, or if no checkpoint would be lost that is not of these
        inputs. Raises CastorError, naming what has changed, when one would be.
        """
        left = read_json(files.key) if files.key.is_file() else None
        accepted: list[str] = []
        if left is not None and left["key"] == self.inputs.key and not self.fresh:
            return
        if left is None or self.fresh or not files.checkpoints():
            shutil.rmtree(files.folder, ignore_errors=True)
        else:
            if not self.accept_changes:
                raise CastorError(self._refusal(files, left["inputs"]))
            shutil.rmtree(files.samples, ignore_errors=True)  # of the inputs as they were
            files.reference_logprobs.unlink(missing_ok=True)
            accepted = [*left["accepted"], left["key"]]
        write_json(files.key, {"key": self.inputs.key, "inputs": asdict(self.inputs), "accepted": accepted})

    def _refusal(self, files: TrainingFiles, before: Mapping[str, Any]) -> str:
        changes = list(self.inputs.changes(before))
        shown = "; ".join(changes[:SHOWN]) + (f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
        step = files.steps()[-1]
        return (
            f"{self.stage} was cut short after step {step}, and has changed since: {shown}. Undo that to go on; "
            f"--accept-changes goes on from step {step} all the same, --fresh starts the stage over"
        )


def accepted_keys(files: TrainingFiles) -> set[str]:
    """The keys that a checkpoint in this folder may have: its stage's, and those from which it was told to go on."""
    left = read_json(files.key)
    return {left["key"], *left["accepted"]}


def _different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]


def _changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Every value that differs, as `place: before -> now`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in _different(before, now):
            yield from _changes(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif before != now:
        yield f"{place} {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
