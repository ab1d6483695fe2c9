"""What several processes count in one folder, and what is left of one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from serve.gateway.metrics import Metrics

REPLICA = """
import sys
from pathlib import Path
from serve.gateway.metrics import Metrics

metrics = Metrics(Path(sys.argv[1]))
metrics.requests.labels("/v1/completions", "policy", "200").inc(3)
metrics.first_text.labels("policy", "off").observe(0.02)
metrics.waiting.labels("batch").inc(2)
with metrics.running.track_inprogress():
    print("counted", flush=True)
    sys.stdin.read()
metrics.end()
"""


@pytest.fixture(autouse=True)
def alone_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library counts in is one choice for the whole process."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")


@pytest.fixture
def replica(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has counted, and has one request at work."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", REPLICA, str(folder)], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "counted\n"
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def told(metrics: Metrics) -> dict[str, float]:
    """Every sample of the page, with its labels in the order of their names."""
    families = text_string_to_metric_families(metrics.page().decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for sample in samples
    }


def test_any_replica_tells_of_all(folder: Path, replica: subprocess.Popen[str]) -> None:
    metrics = Metrics(folder)
    metrics.requests.labels("/v1/completions", "policy", "200").inc()
    metrics.requests.labels("/v1/score", "", "400").inc()
    metrics.first_text.labels("policy", "off").observe(3)
    metrics.running.inc()
    found = told(metrics)
    assert found["castor_requests_total policy /v1/completions 200"] == 4
    assert found["castor_requests_total  /v1/score 400"] == 1
    assert found["castor_first_text_seconds_bucket off 0.025 policy"] == 1
    assert found["castor_first_text_seconds_count off policy"] == 2
    assert found["castor_first_text_seconds_sum off policy"] == pytest.approx(3.02)
    assert (found["castor_running"], found["castor_waiting batch"], found["castor_waiting interactive"]) == (2, 2, 0)
    assert (found["castor_gateway_replicas"], metrics.replicas()) == (2, 2)


def test_a_replica_that_is_killed_has_nothing_at_work(folder: Path, replica: subprocess.Popen[str]) -> None:
    metrics = Metrics(folder)
    replica.kill()
    assert replica.wait() == -signal.SIGKILL
    found = told(metrics)
    assert found["castor_requests_total policy /v1/completions 200"] == 3  # a counter never falls
    assert (found["castor_running"], found["castor_waiting batch"]) == (0, 0)
    assert (found["castor_gateway_replicas"], metrics.replicas()) == (1, 1)


def test_the_last_one_takes_the_folder_with_it(folder: Path, replica: subprocess.Popen[str]) -> None:
    metrics = Metrics(folder)
    metrics.end()
    assert folder.exists()
    replica.communicate("", timeout=60)
    assert replica.returncode == 0
    assert not folder.exists()


def test_without_a_folder_one_process_counts_for_itself() -> None:
    metrics = Metrics()
    metrics.audit_failures.inc()
    assert told(metrics)["castor_audit_failures_total"] == 1
    assert told(Metrics())["castor_audit_failures_total"] == 0
    assert metrics.replicas() == 1
    metrics.end()


def test_a_folder_that_leads_elsewhere_is_not_counted_in(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not this user's own folder"):
        Metrics(tmp_path / "link")
    assert os.listdir(tmp_path / "elsewhere") == []
