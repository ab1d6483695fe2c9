"""What the gateway counts, for Prometheus. No label holds what a client wrote, but for names of models that exist."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Of one replica of the gateway."""

    def __init__(self) -> None:
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
        self.running = Gauge("castor_running", "requests at work", registry=self.registry)
        self.waiting = Gauge("castor_waiting", "requests that wait for a place", ["priority"], registry=self.registry)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
