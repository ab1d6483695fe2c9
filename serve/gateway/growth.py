"""How many replicas the gateway has: it listens itself, so it has to tell Serve how much there is to do."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

from castor.config.gateway import Gateway
from serve.replicas import number_of

HELD = "castor_held"  # what a replica tells Serve: requests at work, and those that wait


def growing(gateway: Gateway) -> dict[str, Any]:
    """The option of the deployment that says how many replicas there are."""
    options = number_of(gateway)
    if "autoscaling_config" in options:
        options["autoscaling_config"]["policy"] = {"policy_function": f"{__name__}:{replicas_wanted.__name__}"}
    return options


def replicas_wanted(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As many as hold `target_ongoing_requests` each, and no state. Serve bounds and delays it as it does its own."""
    assert context.config is not None  # Serve has one for whatever it scales
    held = (context.aggregated_metrics or {}).get(HELD, {})
    return sum(held.values()) / context.config.get_target_ongoing_requests(), {}
