"""Being asked to end by Ctrl-C or SIGTERM: at once, or, by whoever can keep its state, when that is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_asked = threading.Event()
_tell: list[Callable[[], None]] = []  # of the bodies of `keeping_state`


class Ended(Exception):
    """Work has ended early, as it was asked to; the text says from where the same command goes on."""


def asked_to_end() -> bool:
    """Whether this process has been asked to end."""
    return _asked.is_set()


def listen() -> None:
    """From here on, Ctrl-C and SIGTERM are requests to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def interrupt(signum: int, frame: Any) -> None:
    """Handler of the signals. Raises KeyboardInterrupt, unless this is the first one and the work keeps its state."""
    first = not _asked.is_set()
    _asked.set()
    if not first or not _tell:
        raise KeyboardInterrupt
    _tell[-1]()


@contextmanager
def keeping_state(tell: Callable[[], None]) -> Iterator[None]:
    """While the body runs, the first request to end is only noted, and `tell` is called, in the signal's handler.

    The body looks at `asked_to_end` and, once it has kept its state, raises `Ended`. A second request interrupts it.
    """
    _tell.append(tell)
    try:
        yield
    finally:
        _tell.remove(tell)
