"""What the gateway counts, for Prometheus. No label holds what a client wrote, but for names of models that exist."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal, get_args

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

from serve.gateway.admission import Priority

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
NOW: Literal["livesum"] = "livesum"  # of a gauge: what all processes that live have now
FOLDER_OF_LIBRARY = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Of all replicas of the gateway that share a folder; of this process alone where there is none.

    Each replica counts in files of its own there (prometheus_client's multiprocess mode), and any of them can tell of
    all. What a replica has counted stays when it ends; what it had at work does not.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Begin to count. Raises PermissionError when the folder is another user's."""
        self.folder = folder
        if folder is not None:
            _take(folder)
            os.environ[FOLDER_OF_LIBRARY] = str(folder)
            values.ValueClass = values.MultiProcessValue()  # the library chooses when it is imported: too early
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "castor_requests", "requests by their end", ["route", "model", "status"], registry=self.registry
        )
        self.first_text = Histogram(
            "castor_first_text_seconds", "from the request to the first text that the client got", ["model", "guard"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "castor_request_seconds", "from the request to its end", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.judge_seconds = Histogram(
            "castor_judge_seconds", "one question to the judges", buckets=SECONDS, registry=self.registry
        )
        self.judge_failures = Counter(
            "castor_judge_failures", "questions that the judges did not answer", ["code"], registry=self.registry
        )
        self.verdicts = Counter("castor_verdicts", "judged answers", ["model", "guard", "end"], registry=self.registry)
        self.audit_failures = Counter(
            "castor_audit_failures", "lines that the audit log could not take", registry=self.registry
        )
        self.running = self._gauge("castor_running", "requests at work")
        self.waiting = self._gauge("castor_waiting", "requests that wait for a place", "priority")
        for priority in get_args(Priority):
            self.waiting.labels(priority)
        self._gauge("castor_gateway_replicas", "replicas of the gateway that listen").set(1)

    def replicas(self) -> int:
        """How many processes share the folder now. Those that have ended are no longer counted in any gauge."""
        if self.folder is None:
            return 1
        pids = {int(path.stem.rpartition("_")[2]) for path in self.folder.glob(f"gauge_{NOW}_*.db")}
        living = {pid for pid in pids if psutil.pid_exists(pid)}
        for pid in pids - living:
            multiprocess.mark_process_dead(pid, str(self.folder))
        return len(living)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        if self.folder is None:
            return generate_latest(self.registry)
        self.replicas()
        everybody = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody, str(self.folder))
        return generate_latest(everybody)

    def end(self) -> None:
        """Count no more. The last one takes the folder with it."""
        if self.folder is not None:
            multiprocess.mark_process_dead(os.getpid(), str(self.folder))
            if not self.replicas():
                shutil.rmtree(self.folder, ignore_errors=True)  # one that begins at this moment would have files there

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=NOW)


def _take(folder: Path) -> None:
    """Make the folder, for this user alone. Raises PermissionError where another one has made it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's own folder: remove it, or choose another gateway.port")
