"""The copies of checkpoints at a URL: of which runs there are some, whether they are whole, and which may go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from castor.io.checkpoint import MANIFEST
from castor.io.errors import CastorError, first_line
from castor.run.checkpoints import LEDGER, RECORD
from castor.run.ledger import Entry, Terms, check_ledger
from castor.run.remote import CONFIG, STEP, RemoteCheckpoints, open_url

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Copy:
    """One checkpoint at a URL."""

    step: int
    files: Mapping[str, int]  # the size of each in bytes, by its path in the copy

    @property
    def complete(self) -> bool:
        """Whether all of it was copied: the manifest comes last."""
        return MANIFEST in self.files

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.files.values())


@dataclass(frozen=True)
class CopiedStage:
    """The copies of one stage, the oldest first; `newest` is the step that a run would go on from."""

    run: str
    stage: str
    newest: int | None
    copies: Sequence[Copy]


class Copies:
    """What lies at a URL below which runs have copied their checkpoints, as RUN/STAGE/step-N."""

    def __init__(self, url: str) -> None:
        """Raises CastorError where the kind of URL is unknown, or what it needs is not installed."""
        self.url = url.rstrip("/")
        self.filesystem, self.root = open_url(self.url)

    def stages(self, run: str | None = None) -> list[CopiedStage]:
        """Of every run, or of one. Raises CastorError when the URL cannot be read."""
        below = self.root if run is None else f"{self.root}/{run}"
        with self._reading(below):
            found = self.filesystem.find(below, detail=True)
        stages: dict[tuple[str, str], dict[int, dict[str, int]]] = {}
        for name, info in found.items():
            path = name.removeprefix(f"{self.root}/")
            place, step, file = _parts(path)
            if step is not None:
                stages.setdefault(place, {}).setdefault(step, {})[file] = int(info["size"] or 0)
        return [
            CopiedStage(name, stage, self._newest(name, stage), [Copy(step, copies[step]) for step in sorted(copies)])
            for (name, stage), copies in sorted(stages.items())
        ]

    def config(self, run: str) -> str:
        """The config of a run, as text. Raises CastorError where there is none."""
        path = f"{self.root}/{run}/{CONFIG}"
        with self._reading(path):
            if not self.filesystem.exists(path):
                raise CastorError(f"there is no run at {self.url}/{run}: it has no {CONFIG}")
            return str(self._bytes(path).decode())

    def verify(self, stage: CopiedStage, copy: Copy) -> None:
        """Read all of a copy. Raises CastorError unless it is what was written, and its ledger holds."""
        place = self._place(stage, copy)
        if not copy.complete:
            raise CastorError(f"it has no {MANIFEST}: it was not copied to the end")
        with self._reading(place):
            for name, wanted in json.loads(self._bytes(f"{place}/{MANIFEST}")).items():
                if name not in copy.files or self._sha256(f"{place}/{name}") != wanted:
                    raise CastorError(f"{name} is missing or damaged")
            terms = json.loads(self._bytes(f"{place}/{RECORD}"))["terms"]
            lines = self._bytes(f"{place}/{LEDGER}").decode().splitlines()
        found = check_ledger([Entry.from_json(json.loads(line)) for line in lines], Terms.from_json(terms))
        if found != copy.step:
            raise CastorError(f"{LEDGER} has {found} steps")

    def superfluous(self, stage: CopiedStage, keep: int) -> list[Copy]:
        """All but the newest `keep` that are complete and no newer than the one that a run would go on from."""
        whole = [copy for copy in stage.copies if copy.complete and copy.step <= (stage.newest or 0)]
        kept = {copy.step for copy in whole[-keep:]}
        return [copy for copy in stage.copies if copy.step not in kept and copy.step <= (stage.newest or 0)]

    def remove(self, stage: CopiedStage, copy: Copy) -> None:
        """Remove a copy. Raises CastorError when it cannot be."""
        place = self._place(stage, copy)
        with self._reading(place):
            self.filesystem.rm(place, recursive=True)

    def _newest(self, run: str, stage: str) -> int | None:
        return RemoteCheckpoints(self.url, run, stage).newest()

    def _place(self, stage: CopiedStage, copy: Copy) -> str:
        return f"{self.root}/{stage.run}/{stage.stage}/{STEP.format(copy.step)}"

    def _bytes(self, path: str) -> bytes:
        with self.filesystem.open(path, "rb") as handle:
            return bytes(handle.read())

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self.filesystem.open(path, "rb") as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except CastorError:
            raise
        except Exception as error:  # every kind of file system has its own
            raise CastorError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}") from error


def _parts(path: str) -> tuple[tuple[str, str], int | None, str]:
    """(run, stage), step and the path in its folder, of RUN/STAGE/step-N/FILE; the step is None of anything else.

    The stages of rounds have a slash in their names.
    """
    folders = path.split("/")
    prefix = STEP.partition("{")[0]
    places = [i for i, name in enumerate(folders) if name.startswith(prefix) and name.removeprefix(prefix).isdigit()]
    if not places or places[0] < 2:
        return ("", ""), None, ""
    place = places[0]
    step = int(folders[place].removeprefix(prefix))
    return (folders[0], "/".join(folders[1:place])), step, "/".join(folders[place + 1 :])
