"""How many replicas of the gateway Serve is told to keep."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from castor.config.gateway import Gateway
from serve.gateway.growth import HELD, growing

GATEWAY = DeploymentID(name="gateway", app_name="castor")


def context(config: AutoscalingConfig, held: list[float] | None) -> AutoscalingContext:
    """As Serve makes it; None: no replica has told anything yet."""
    replicas = [ReplicaID(str(number), GATEWAY) for number in range(len(held or [0]))]
    told: dict[str, Any] = {} if held is None else {HELD: dict(zip(replicas, held, strict=True))}
    return AutoscalingContext(
        deployment_id=GATEWAY, deployment_name="gateway", app_name="castor", current_num_replicas=len(replicas),
        target_num_replicas=len(replicas), running_replicas=replicas, total_num_requests=0.0, total_queued_requests=0.0,
        aggregated_metrics=told, raw_metrics={}, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=8,
        policy_state={}, last_scale_up_time=None, last_scale_down_time=None, current_time=0.0, config=config,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("held", "wanted"), [(None, 0.0), ([0.0], 0.0), ([20.0], 2.0), ([4.0, 11.0], 1.5), ([10.0, 30.0, 40.0], 8.0)]
)
def test_as_many_replicas_as_what_all_of_them_hold_asks_for(held: list[float] | None, wanted: float) -> None:
    options = growing(Gateway(replicas=1, max_replicas=8, target_ongoing_requests=10))
    config = AutoscalingConfig(**options["autoscaling_config"])
    policy = config.policy.get_policy()  # as Serve's controller loads it, which need not have Castor
    assert policy(context(config, held)) == (wanted, {})
    assert (config.min_replicas, config.max_replicas) == (1, 8)


def test_a_gateway_that_does_not_grow_has_as_many_as_it_says() -> None:
    assert growing(Gateway(replicas=3)) == {"num_replicas": 3}
