"""What the deployments have in common."""

from typing import Any

from actors.group import actor_env
from castor.config.training import Resources

STOP_S = 3.0  # granted to requests in flight when the endpoint is stopped
CONSTRUCTOR_RETRIES = 2


def deployment_options(name: str, replicas: int, resources: Resources) -> dict[str, Any]:
    """Arguments of a deployment's `.options()`: what to reserve, the environment, and patience."""
    return {
        "name": name,
        "num_replicas": replicas,
        "ray_actor_options": {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "resources": dict(resources.custom),
            "runtime_env": {"env_vars": actor_env(resources)},
        },
        "graceful_shutdown_timeout_s": STOP_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 30,
        "health_check_timeout_s": 120,  # a loaded machine answers late
        "max_constructor_retry_count": CONSTRUCTOR_RETRIES,
    }
