"""Where the seconds of a start go: measured in each process by cause, told by the driver a group at a time."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors import BEGAN
from actors.recording import recorder

PROCESS, IMPORTS = "process", "imports"
SHOWN_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """One process's. `seconds` are by cause, and leave out where it waited to be asked."""

    seconds: Mapping[str, float]
    ready: float  # seconds since the epoch


class Spent:
    """Seconds by cause: those of a cause within another one are the inner one's alone."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.seconds = dict[str, float]()
        self.last = now()  # when the outermost cause ended last
        self._now, self._within = now, list[str]()

    def enter(self, cause: str) -> None:
        """From now on seconds are this cause's."""
        self._charge()
        self._within.append(cause)

    def leave(self) -> None:
        """Back to the cause before."""
        self._charge()
        self._within.pop()

    def _charge(self) -> None:
        now = self._now()
        if self._within:
            self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self.last
        self.last = now


_spent = Spent()
_begun = False  # whether Ray's part and the first imports are counted


@contextmanager
def phase(cause: str) -> Iterator[None]:
    """What the body takes is the cause's, but for phases within it. For one thread, that which starts this process up.

    Python imports where it comes to it: what takes seconds to import belongs into a phase IMPORTS of its own.
    """
    _begin()
    began = time.time()
    _spent.enter(cause)
    try:
        yield
    finally:
        _spent.leave()
        recorder().span(cause, began, _spent.last)


def during(cause: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `phase` around every call."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with phase(cause):
                return method(*args, **kwargs)

        return timed

    return decorate


class Starting:
    """Base of an actor that says what its start took."""

    def __init__(self) -> None:
        _begin()

    def startup(self) -> Start:
        """What it took since it was last asked, and when it was over."""
        return startup()


def startup() -> Start:
    """That of this process, since the last call."""
    _begin()
    seconds, _spent.seconds = _spent.seconds, {}
    return Start(seconds, _spent.last)


def _begin() -> None:
    """Count what came before the first line of an actor: its process and Ray in it, then its class with all imports."""
    global _begun
    if _begun:
        return
    _begun = True
    import psutil

    created, now = psutil.Process().create_time(), time.time()
    _spent.seconds |= {PROCESS: BEGAN - created, IMPORTS: now - BEGAN}
    _spent.last = now
    recorder().span(PROCESS, created, BEGAN)
    recorder().span(IMPORTS, BEGAN, now)


class Beginning:
    """The beginning of a stage, as its driver sees it: what it waited for until the first token or step."""

    def __init__(self, stage: str = "", since: float | None = None, now: Callable[[], float] = time.time) -> None:
        """`since`: when the stage was asked for; default: now."""
        self.stage, self._now = stage, now
        self.seconds = dict[str, float]()  # by what was waited for, in order
        self.actors = dict[str, dict[str, float]]()  # by group: seconds by cause of the rank that was ready last
        self.first_at: float | None = None
        self._begun = self._last = now() if since is None else since

    def lap(self, cause: str, at: float | None = None) -> None:
        """What was waited for until now. After the first token or step nothing is counted any more."""
        if self.first_at is None:
            at = self._now() if at is None else at
            recorder().span(cause, self._last, at)
            self._count(cause, at)

    def ready(self, group: str, asked: float, starts: Sequence[Start]) -> None:
        """A group that was asked for at `asked` is ready. Logs a line on the rank that was the last."""
        last = max(starts, key=lambda start: start.ready)
        causes = dict(last.seconds)
        if PROCESS in causes:
            rest = last.ready - asked - sum(causes.values())
            causes[PROCESS] += min(0.0, rest)  # Ray had the process before it was asked for one
            causes["waiting"] = max(0.0, rest)  # for Ray, and for others
        self.actors[group] = {cause: round(value, 3) for cause, value in causes.items()}
        log.info("%s ready after %.1f s: %s", group, last.ready - asked, told(causes))

    def first(self, what: str, at: float | None = None) -> None:
        """The first token or step has come (`at`, default: now). Logs a line; later calls change nothing."""
        if self.first_at is not None:
            return
        at = max(self._last, self._now() if at is None else at)
        self._count(f"first {what}", at)  # no span: it ends within the first step
        self.first_at = at
        log.info("%s: first %s after %.1f s: %s", self.stage, what, at - self._begun, told(self.seconds))

    def _count(self, cause: str, at: float) -> None:
        self.seconds[cause] = self.seconds.get(cause, 0.0) + at - self._last
        self._last = at

    def record(self) -> dict[str, Any]:
        """For the stage's record: seconds until the first token or step, by cause, and by group and cause."""
        return {"seconds": {cause: round(value, 3) for cause, value in self.seconds.items()}, "actors": self.actors}

    def metrics(self) -> dict[str, float]:
        """The same for the tracker: startup/CAUSE_s and startup/GROUP/CAUSE_s."""
        found = {f"startup/{cause.replace(' ', '_')}_s": value for cause, value in self.seconds.items()}
        for group, causes in self.actors.items():
            found |= {f"startup/{group}/{cause.replace(' ', '_')}_s": value for cause, value in causes.items()}
        return found


def told(seconds: Mapping[str, float]) -> str:
    """Causes with their seconds, in words; none of less than a twentieth of a second."""
    return ", ".join(f"{cause} {value:.1f}" for cause, value in seconds.items() if value >= SHOWN_S)
