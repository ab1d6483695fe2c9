"""Timelines in the trace event format of Chrome and Perfetto: every process writes a file, put together at the end."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from castor.io.files import atomic_write

EVENTS = 20_000  # of one process: a megabyte or two


class Recorder:
    """What one process does, a line an event, written at once: a process that is killed loses the call it is in.

    After `EVENTS` events nothing is written any more but where they end.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """`name`: of the process, for the reader; the file's name has its number as well."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = (folder / f"{name}.{os.getpid()}.jsonl").open("a", encoding="utf-8", buffering=1)
        self._lock, self._threads, self._left = threading.Lock(), dict[int, int](), EVENTS
        self._write({"process": name, "node": socket.gethostname()})

    def span(self, name: str, begin: float, end: float, **args: Any) -> None:
        """Something that took from `begin` to `end`, seconds since the epoch, in this thread."""
        with self._lock:
            thread = self._threads.setdefault(threading.get_ident(), len(self._threads))
            self._left -= 1
            ts, dur = int(begin * 1e6), int(end * 1e6) - int(begin * 1e6)  # both ends are cut alike, so what nests does
            if self._left >= 0:
                self._write({"ph": "X", "name": name, "ts": ts, "dur": dur, "tid": thread, "args": args})
            elif self._left == -1:
                self._write({"ph": "i", "name": f"{EVENTS:,} events: the later ones are left out", "ts": ts,
                             "tid": thread, "s": "p", "args": {}})  # fmt: skip

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


class NoRecorder(Recorder):
    """Where nothing is recorded."""

    def __init__(self) -> None:
        pass

    def span(self, name: str, begin: float, end: float, **args: Any) -> None:
        """Nothing."""


def write_timeline(folder: Path, target: Path) -> list[str]:
    """Put the files of all processes together in `target`, a row a process, those first that began first.

    Returns the names of those whose later events were left out.
    """
    processes = sorted((list(_read(file)) for file in sorted(folder.glob("*.jsonl"))), key=_begin)
    events, cut = list[dict[str, Any]](), list[str]()
    for pid, (head, *rest) in enumerate(processes, start=1):
        name = str(head["process"])
        meta = {"process_name": {"name": name}, "process_sort_index": {"sort_index": pid},
                "process_labels": {"labels": head["node"]}}  # fmt: skip
        events += [{"ph": "M", "name": key, "pid": pid, "tid": 0, "args": args} for key, args in meta.items()]
        events += [{**event, "pid": pid} for event in rest]
        cut += [name for event in rest if event["ph"] == "i"]
    with atomic_write(target) as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file, ensure_ascii=False)
    return cut


def _read(file: Path) -> Iterator[dict[str, Any]]:
    whole_lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # a process may be killed while it writes the last
    yield from map(json.loads, whole_lines)


def _begin(process: list[dict[str, Any]]) -> int:
    return min((event["ts"] for event in process[1:]), default=0)
