"""What holds for every unit test."""

import sys

import pytest


@pytest.fixture(autouse=True)
def no_words_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray's workers write meanwhile is no part of what a unit test reads.

    A process that has carried out an integration test may still hold its Ray, which prints into `sys.stdout`.
    """
    if worker := sys.modules.get("ray._private.worker"):
        monkeypatch.setattr(worker, "_worker_logs_enabled", False)
