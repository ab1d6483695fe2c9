"""What an actor does, for the timeline of a run with `--profile`.

Ray's own timeline would not do: it loses what an actor did in the second before it was killed, calls actors by the ids
of their processes, and sees neither steps nor what happens within one call, which is all that a worker of Ray Train is.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from castor.io.timeline import NoRecorder, Recorder
from castor.run.profile import ACTOR, FOLDER, Profile

SHORTEST_S = 1e-4  # nothing shorter is seen


_given: Recorder | None = None


def recorder() -> Recorder:
    """That of this process: what `record_here` was told, else what its environment asks for."""
    return _given or _of_environment()


@functools.cache
def _of_environment() -> Recorder:
    folder = os.environ.get(FOLDER)
    return Recorder(Path(folder), os.environ[ACTOR]) if folder else NoRecorder()


def record_here(profile: Profile | None, name: str) -> None:
    """What this process, which was not started to be recorded, does from now on goes into `profile`; None: nowhere."""
    global _given
    _given = None if profile is None else Recorder(profile.folder, name)


def recorded(actor: type) -> type:
    """Class decorator: every public method becomes a span with the step or version that it is of.

    Both are found in its arguments, the step also in the name of the call (`of_step`) and in `self.current_step`.
    """
    for name, method in inspect.getmembers(actor, inspect.isfunction):
        if not name.startswith("_"):
            setattr(actor, name, _recorded(name, method))
    return actor


def _recorded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    parameters = list(inspect.signature(method).parameters)

    @functools.wraps(method)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if isinstance(recorder(), NoRecorder):
            return method(*args, **kwargs)
        begin = time.time()
        try:
            return method(*args, **kwargs)
        finally:
            note(name, begin, dict(zip(parameters, args, strict=False)) | kwargs)

    @functools.wraps(method)
    def streamed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        begin = time.time()
        try:
            yield from method(*args, **kwargs)
        finally:
            note(name, begin, dict(zip(parameters, args, strict=False)) | kwargs)

    return streamed if inspect.isgeneratorfunction(method) else timed


def note(name: str, begin: float, arguments: dict[str, Any]) -> None:
    """A span from `begin` (seconds since the epoch) until now, with what its arguments say of step and version."""
    end, found = time.time(), recorder()
    if isinstance(found, NoRecorder) or end - begin < SHORTEST_S:
        return
    told = {key: value for key in ("step", "version") if isinstance(value := arguments.get(key), int)}
    if (current := getattr(arguments.get("self"), "current_step", None)) is not None:
        told["step"] = current
    for key, attribute in (("batch", "step"), ("update", "version")):
        if key in arguments and (value := getattr(arguments[key], attribute, None)):
            told[attribute] = value
    if "step" not in told and (named := _STEP.search(_task_name())):
        told["step"] = int(named[1])
    found.span(name, begin, end, **told)


def _task_name() -> str:
    import ray  # a command with nothing to do does without

    return ray.get_runtime_context().get_task_name() or "" if ray.is_initialized() else ""


_STEP = re.compile(r" of step (\d+)$")


def of_step(handle: Any, method: str, step: int | None, **options: Any) -> Any:
    """A method of an actor, whose call Ray, and so the timeline, names with the step that it is of, if it is of one."""
    name = {} if step is None else {"name": f"{method} of step {step}"}
    return getattr(handle, method).options(**name, **options)
