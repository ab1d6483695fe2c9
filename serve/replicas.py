"""What the deployments have in common."""

from typing import Any

from actors.group import actor_env
from castor.config.replicas import Replicated
from castor.config.serve import Replicas
from castor.config.training import Resources

STOP_S = 3.0  # granted to requests in flight when the endpoint is stopped
CONSTRUCTOR_RETRIES = 2
# One event loop a process: in two threads, each hand-over of a request or of a part of a stream from one loop to the
# other waits for Python's lock. Ray Serve reads these when it is imported. A forked worker has imported it before the
# environment of its deployment is known, so `castor serve` sets them for every process that it starts.
ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 10.0, 300.0  # starting an engine costs more than keeping one


def replica_env(resources: Resources) -> dict[str, str]:
    """Environment of a replica's process."""
    return actor_env(resources) | ONE_LOOP


def deployment_options(name: str, replicas: Replicas, **env: str) -> dict[str, Any]:
    """Arguments of a deployment: how many replicas, what each reserves, its environment with `env`, and patience."""
    resources = replicas.resources
    options: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": replicas.max_ongoing_requests,
        "ray_actor_options": {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "resources": dict(resources.custom),
            "runtime_env": {"env_vars": replica_env(resources) | env},
        },
        "graceful_shutdown_timeout_s": STOP_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 10,
        "health_check_timeout_s": 120,  # a loaded machine answers late
        "max_constructor_retry_count": CONSTRUCTOR_RETRIES,
    }
    return options | number_of(replicas)


def number_of(deployment: Replicated) -> dict[str, Any]:
    """The option of a deployment that says how many replicas there are."""
    if deployment.max_replicas is None:
        return {"num_replicas": deployment.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": deployment.replicas,
            "initial_replicas": deployment.replicas,
            "max_replicas": deployment.max_replicas,
            "target_ongoing_requests": deployment.target_ongoing_requests,
            "upscale_delay_s": UPSCALE_DELAY_S,
            "downscale_delay_s": DOWNSCALE_DELAY_S,
        }
    }
