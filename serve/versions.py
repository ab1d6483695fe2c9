"""Which weights the policies are to have: a file that every replica reads, so that one started later has them, too."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from castor.io.files import make_folder, read_json, write_json

if TYPE_CHECKING:  # the gateway's driver needs no torch
    from engines.weights.base import WeightUpdate


@dataclass(frozen=True)
class Version:
    """The weights of a policy. Number 0 is what it was started with."""

    number: int
    folder: str
    digest: str | None  # of all weights; None where nobody had to prove them
    files: tuple[str, ...] = ()

    def name(self, policy: str) -> str:
        """What a client is told."""
        return f"{policy}@{self.number}"

    def update(self) -> WeightUpdate:
        """What an engine is given."""
        from engines.weights.base import WeightUpdate
        from engines.weights.folder import TRANSPORT

        assert self.digest is not None
        return WeightUpdate(self.number, self.digest, TRANSPORT, list(self.files))


class Versions:
    """The file. It has one writer, `castor serve update`, which replaces it as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, policy: str) -> Version | None:
        """What a policy is to have; None: what it was started with. Raises ValueError for a damaged file."""
        values = read_json(self.path).get(policy) if self.path.is_file() else None
        return None if values is None else Version(**(values | {"files": tuple(values["files"])}))

    def put(self, policy: str, version: Version) -> None:
        """From now on."""
        all_of_them = read_json(self.path) if self.path.is_file() else {}
        make_folder(self.path.parent)
        write_json(self.path, all_of_them | {policy: asdict(version)})

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One replica at a time, of all that see this file."""
        with self.path.with_suffix(".lock").open("a") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            yield

    def forget(self) -> None:
        """Every policy has what it is started with."""
        self.path.unlink(missing_ok=True)
