"""Lines that Ray forwards from its workers, said once and then counted."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import Any, TextIO

REMEMBERED = 256  # different lines
_FORWARDED = re.compile(r"(\x1b\[\d+m)*\(([^()]+ )?pid=\d+[^()]*\)")
_CHANGING = re.compile(r"\x1b\[\d+m|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([.,]\d+)?|\[repeated \d+x [^]]*\]|pid=\d+")


class Collapsing:
    """A text stream that leaves out what a worker says again and again.

    A line that Ray forwards, `(name pid=1) text`, is written when it is new, and again, with their number, the 10th,
    the 100th, the 1000th time that the same text comes from workers of that name, whatever its time and process. All
    else passes as it comes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, ""
        self._times: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.RLock()  # Ray prints from threads of its own

    def write(self, text: str) -> int:
        """As the stream's. The beginning of a forwarded line waits for its end."""
        with self._lock:
            lines = (self._begun + text).splitlines(keepends=True)
            self._begun = ""
            for line in lines:
                if _FORWARDED.match(line) is None:
                    self._stream.write(line)
                elif line.endswith("\n"):
                    self._forwarded(line)
                else:
                    self._begun = line
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As the stream's."""
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """Write the line that has not ended."""
        with self._lock:
            self._stream.write(self._begun)
            self._begun = ""

    def _forwarded(self, line: str) -> None:
        key = _CHANGING.sub("", line).strip()
        times = self._times.pop(key, 0) + 1
        self._times[key] = times  # the newest last
        if len(self._times) > REMEMBERED:
            self._times.popitem(last=False)
        if times == 1:
            self._stream.write(line)
        elif str(times) == "1" + "0" * (len(str(times)) - 1):
            self._stream.write(f"{line.rstrip()}  [{times} times so far]\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
